"""Random languages: logits that depend on the tokens before, for engines without a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def language(
    seed: int, order: int = 2, *, vocab_size: int
) -> Callable[[tuple[int, ...]], np.ndarray]:
    """The row after a prefix, f64[V], as its last ``order`` tokens determine it."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        key = [seed, *(token + 1 for token in prefix[-order:])]
        return np.random.default_rng(key).normal(size=vocab_size)

    return row
