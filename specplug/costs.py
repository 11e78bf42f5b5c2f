"""What calls of an engine cost by their width, measured here and now."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from specplug.engine_calls import forward
from specplug.feeding import feed
from specplug.types import Engine, Step

WIDTHS = (1, 16, 4, 8, 32, 2, 12, 6, 24, 3)
"""In the order of what they tell, should time be short."""
SECONDS = 0.7
_CALLS = 7  # of a width, at most
_LEAST = 2  # widths that are measured however long it takes
_SLOW = 0.25  # seconds of a call of which setting up is a small part
_PAST = 16


def measure_costs(
    engine: Engine,
    *,
    widths: Sequence[int] = WIDTHS,
    past: int = _PAST,
    seconds: float = SECONDS,
    rows: int = 1,
) -> dict[int, float]:
    """Seconds of a call by width, the widths in turn. The engine's cache is written to.

    Args:
        engine: any.
        widths: tokens a call; narrower ones than ``min_width`` cost what that costs.
        past: cache entries that the calls read.
        seconds: about as long it may take beside the filling of the cache; the first two widths are
            measured in any case.
        rows: of the call.

    Raises:
        EngineError: a call failed.
    """
    spec = engine.spec
    past = min(past, spec.context_limit // 2)
    random = np.random.default_rng(0)
    widest = max(*widths, past, spec.min_width)
    tokens = random.integers(0, spec.vocab_size, size=(rows, widest))

    def call(width: int, past: int) -> float:
        run = tokens[:, : max(width, spec.min_width)]
        started = time.perf_counter()
        forward(engine, Step(tokens=run, past=np.full(rows, past, dtype=np.int64))).argmax()
        return time.perf_counter() - started

    for row in range(rows):
        feed(engine, tokens[row, :past].tolist(), past=0, scored=1, row=row)
    fitting = [width for width in widths if past + width <= spec.context_limit] or [1]
    found: dict[int, list[float]] = {}
    ready: list[int] = []
    deadline = time.perf_counter() + seconds
    for width in fitting:
        first = call(width, past)  # sets the shape up
        ready.append(width)
        if first > _SLOW:
            found[width] = [first]
        if time.perf_counter() > deadline and len(ready) >= _LEAST:
            break
    for repeat in range(_CALLS):
        for number, width in enumerate(ready):
            if time.perf_counter() > deadline and (repeat or number >= _LEAST):
                break
            found.setdefault(width, []).append(call(width, past))
    # Of a busy machine the lower quartile tells more: a call is never quicker than it can be.
    return {width: sorted(taken)[len(taken) // 4] for width, taken in found.items()}
