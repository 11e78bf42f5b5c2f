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


def batch_difference(engine: Engine, tokens: Int64Array) -> float:
    """The largest difference between logits of tokens in a batch and of the same ones alone.

    Args:
        engine: of several rows, which are overwritten; 0.0 means bit for bit the same.
        tokens: some to run, i64[n], n at least 25.
    """
    rows, least = engine.spec.max_batch, engine.spec.min_width
    past = len(tokens) - max(WIDEST // 2, least)
    texts = [np.roll(tokens, row) for row in range(rows)]
    for row, text in enumerate(texts):
        rows_of(engine, text[:past], 0, row)
    worst = 0.0
    for width in {least, max(4, least), len(tokens) - past}:
        runs = np.stack([text[past : past + width] for text in texts])
        alone = [rows_of(engine, run, past, row) for row, run in enumerate(runs)]
        for count in range(2, rows + 1):
            step = Step(tokens=runs[:count], past=np.full(count, past, dtype=np.int64))
            found = engine.forward(step).logits()
            worst = max(worst, float(np.abs(found - np.stack(alone[:count])).max()))
    return worst


def rows_of(engine: Engine, tokens: Int64Array, past: int, row: int = 0) -> Float32Array:
    """Copied logits of every token of one call, f32[T, V]."""
    scores = engine.forward(
        Step(tokens=tokens[None], past=np.array([past], dtype=np.int64), first_row=row)
    )
    rows: Float32Array = scores.logits()[0].copy()
    return rows
