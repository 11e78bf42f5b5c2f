"""What the target's calls of several rows cost."""

from __future__ import annotations

from collections.abc import Mapping

from specplug.controller import CallCosts
from specplug.costs import measure_costs
from specplug.types import Engine

_WIDTHS = (1, 4, 2, 8)  # of calls of several rows
_SECONDS = 0.5  # for the calls of a number of rows


def measure_batch_costs(
    target: Engine, max_batch: int, *, alone: bool
) -> dict[int, Mapping[int, float]]:
    """Seconds of the target's calls by rows and width, for some numbers of rows.

    Args:
        target: the engine.
        max_batch: the most rows.
        alone: whether calls of one row are measured, too.

    Raises:
        EngineError: the engine failed.
    """
    counts = [1 << n for n in range((max_batch - 1).bit_length())]
    return {
        rows: measure_costs(target, widths=_WIDTHS, seconds=_SECONDS, rows=rows)
        if rows > 1
        else measure_costs(target)
        for rows in [*counts, max_batch]
        if rows > 1 or alone
    }


def call_costs(known: Mapping[int, Mapping[int, float]], rows: int) -> CallCosts:
    """Seconds of calls of so many rows.

    Args:
        known: seconds of calls by rows and width, of numbers of rows on both sides of this one.
        rows: of the call.
    """
    below = max(count for count in known if count <= rows)
    above = min(count for count in known if count >= rows)
    share = (rows - below) / (above - below) if above > below else 0.0
    return CallCosts(
        {
            width: (1 - share) * known[below][width] + share * known[above][width]
            for width in known[below].keys() & known[above].keys()
        }
    )
