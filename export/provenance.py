"""Where a component comes from; the same export on the same day gives the same bytes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version

from specplug.bundle import Provenance
from specplug.types import ExportError


def write_provenance(
    source: str,
    sha256: Mapping[str, str],
    tools: tuple[str, ...],
    *,
    revision: str | None = None,
    licence: str | None = None,
) -> Provenance:
    """The manifest's entry for an export made now.

    Args:
        source: its name.
        sha256: of its files, by name.
        tools: the packages whose versions matter.
        revision: of a Hub repository.
        licence: as the source states it.
    """
    return Provenance(
        source=source,
        revision=revision,
        sha256=dict(sha256),
        licence=licence,
        tools={tool: version(tool) for tool in tools},
        date=_date(),
    )


def _date() -> str:
    """Today in UTC; the day of SOURCE_DATE_EPOCH for builds that are to be reproduced later."""
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    if epoch is None:
        return datetime.now(UTC).date().isoformat()
    try:
        return datetime.fromtimestamp(int(epoch), UTC).date().isoformat()
    except (ValueError, OverflowError, OSError) as error:
        raise ExportError(
            f"SOURCE_DATE_EPOCH is {epoch!r}: set it to seconds since 1970, or unset it"
        ) from error
