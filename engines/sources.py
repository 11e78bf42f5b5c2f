"""Where a component's source is, for engines that run the source itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specplug.bundle import file_sha256
from specplug.types import EngineError
from specplug.weights import default_folder

if TYPE_CHECKING:
    from specplug.bundle import Provenance


def find_source(provenance: Provenance, given: Sequence[Path]) -> Path:
    """The checkpoint whose files are those that the provenance names, by SHA-256.

    Args:
        provenance: of the component.
        given: checkpoints to look at first; then come the models that ``specplug pull`` fetched,
            and the Hub's cache.

    Raises:
        EngineError: none of them is it.
    """
    for place in (*given, default_folder() / provenance.source):
        if _is_it(place, provenance):
            return place
    if provenance.revision:
        return Path(f"{provenance.source}@{provenance.revision}")
    looked = ", ".join(map(str, given)) or "the models that specplug pull fetched"
    raise EngineError(
        f"the source {provenance.source!r} of this component is not among {looked}: "
        "name it with --source"
    )


def _is_it(place: Path, provenance: Provenance) -> bool:
    files = {
        name: place if place.is_file() and place.name == name else place / name
        for name in provenance.sha256
    }
    return all(
        file.is_file() and file_sha256(file) == provenance.sha256[name]
        for name, file in files.items()
    )
