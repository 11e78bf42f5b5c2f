"""What the target says after each token alone: where token recycling begins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from specplug.drafters.recycle import KEPT
from specplug.types import Engine, Step

NAME = "continuations.i32"
ROWS = 64
"""Tokens a call, each a sequence of its own."""


def write_continuations(engine: Engine, path: Path, report: Callable[[float], None]) -> None:
    """Write the likeliest continuations of every token, i32[V, KEPT], likeliest first.

    Args:
        engine: of ``ROWS`` rows, over the target.
        path: the file.
        report: told the share that is done.
    """
    vocab_size = engine.spec.vocab_size
    with path.open("wb") as out:
        for start in range(0, vocab_size, ROWS):
            tokens = np.arange(start, min(start + ROWS, vocab_size), dtype=np.int64)[:, None]
            step = Step(tokens=tokens, past=np.zeros(len(tokens), dtype=np.int64))
            logits = engine.forward(step).logits()[:, 0]
            kept = min(KEPT, vocab_size)
            best = np.argpartition(logits, -kept, axis=1)[:, -kept:]
            order = np.argsort(-np.take_along_axis(logits, best, axis=1), axis=1, kind="stable")
            out.write(np.take_along_axis(best, order, axis=1).astype("<i4").tobytes())
            report(min((start + ROWS) / vocab_size, 1.0))
