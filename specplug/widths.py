"""Width independence: from which width on a token's scores do not depend on its call's width."""

from __future__ import annotations

import numpy as np

from specplug.types import Engine, Float32Array, Int64Array, Step

WIDEST = 16
"""The width that narrower calls are compared with."""

_PREFIX = 24  # tokens of the cache that the compared calls read


def smallest_width(engine: Engine, tokens: Int64Array) -> int | None:
    """The smallest width from which rows are bit-identical to those of a call of 16.

    Args:
        engine: one that allows calls of every width.
        tokens: at least 17, i64[n].

    Returns:
        A width below 16; None: even calls of 15 and 16 tokens differ.
    """
    past = min(_PREFIX, len(tokens) - WIDEST)
    sample = tokens[past : past + WIDEST]
    rows_of(engine, tokens[:past], 0)
    widest = rows_of(engine, sample, past)
    smallest = None
    for width in range(WIDEST - 1, 0, -1):
        starts = range(0, WIDEST - width + 1, width)
        rows = np.concatenate([rows_of(engine, sample[s : s + width], past + s) for s in starts])
        if not np.array_equal(rows, widest[: len(rows)]):
            break
        smallest = width
    return smallest


def rows_of(engine: Engine, tokens: Int64Array, past: int) -> Float32Array:
    """Copied logits of every token of one call, f32[T, V]."""
    scores = engine.forward(Step(tokens=tokens[None], past=np.array([past], dtype=np.int64)))
    rows: Float32Array = scores.logits()[0].copy()
    return rows
