"""What calls of an engine cost by their width, measured here and now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from specplug.types import Engine, Step

WIDTHS = (1, 16, 4, 8, 32, 2, 12, 6, 24, 3)
"""In the order of what they tell, should time be short."""
SECONDS = 0.7
_CALLS = 7  # of a width, at most
_PAST = 16


def measure_costs(
    engine: Engine, *, widths: Sequence[int] = WIDTHS, past: int = _PAST, seconds: float = SECONDS
) -> dict[int, float]:
    """Seconds of a call by width, the widths in turn. The engine's cache is written to.

    Args:
        engine: any.
        widths: tokens a call; narrower ones than ``min_width`` cost what that costs.
        past: cache entries that the calls read.
        seconds: about as long it may take; the first widths are measured at least once.

    Raises:
        EngineError: a call failed.
    """
    spec = engine.spec
    past = min(past, spec.context_limit // 2)
    random = np.random.default_rng(0)
    widest = max(*widths, past, spec.min_width)
    tokens = random.integers(0, spec.vocab_size, size=(1, widest))

    def call(width: int, past: int) -> float:
        run = tokens[:, : max(width, spec.min_width)]
        started = time.perf_counter()
        engine.forward(Step(tokens=run, past=np.array([past], dtype=np.int64))).argmax()
        return time.perf_counter() - started

    deadline = time.perf_counter() + seconds
    call(past, 0)
    fitting = [width for width in widths if past + width <= spec.context_limit]
    found: dict[int, list[float]] = {}
    for repeat in range(_CALLS + 1):
        for width in fitting:
            if time.perf_counter() > deadline and len(found) > 1:
                break
            taken = call(width, past)
            if repeat or taken > seconds / len(fitting):  # the first call of a shape sets things up
                found.setdefault(width, []).append(taken)
    if 1 not in found:
        found[1] = [call(1, past)]
    # Of a busy machine the lower quartile tells more: a call is never quicker than it can be.
    return {width: sorted(taken)[len(taken) // 4] for width, taken in found.items()}
