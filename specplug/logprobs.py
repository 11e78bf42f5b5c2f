"""Log-probabilities of tokens, natural logarithms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from specplug.types import Float32Array, Float64Array

LogprobsMode = Literal["raw", "processed"]
"""``raw``: of the target as it is; ``processed``: after penalties, temperature and truncations."""


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """How likely a token was, and which ones were likeliest in its place."""

    chosen: float
    """-inf where only ``processed`` looks: a token that truncation would have excluded."""
    top: tuple[tuple[int, float], ...]
    """Token ids and log-probabilities, likeliest first; of equal ones the lower id first."""
    rank: int
    """The token's place among all tokens, the likeliest one's being 1."""


def log_softmax(logits: Float32Array | Float64Array) -> Float64Array:
    """Log-probabilities of logits f32[V] (-inf for what cannot be), f64[V]."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    shifted -= np.log(np.exp(shifted).sum())
    return shifted


def token_logprobs(values: Float64Array, token: int, top: int) -> TokenLogprobs:
    """Of log-probabilities f64[V], those of a token and of the ``top`` likeliest that can be."""
    best: list[tuple[int, float]] = []
    if top:
        kth = np.partition(values, len(values) - top)[len(values) - top]
        candidates = np.flatnonzero(values >= kth)
        order = candidates[np.argsort(-values[candidates], kind="stable")][:top]
        best = [(int(i), float(values[i])) for i in order if values[i] > -np.inf]
    rank = 1 + int(np.count_nonzero(values > values[token]))
    return TokenLogprobs(float(values[token]), tuple(best), rank)
