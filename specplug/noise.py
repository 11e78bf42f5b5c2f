"""Noise that is looked up: the same seed, position, purpose and token give the same number.

Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) turns a key of
two words and a counter of four into four words. ``docs/FORMAT.md`` has the layout, so that another
language can draw the same; ``tests/golden/noise.json`` has values to compare with.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from specplug.types import Float64Array, Int64Array, UInt64Array

_WORD = 1 << 64
_MULTIPLIERS = np.array([[0xD2E7470EE14C6C93], [0xCA5A826395121157]], dtype=np.uint64)
_STEPS = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_FEW = 1 << 14  # numbers that numpy's own generator draws sooner than ours draws any
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


class Purpose(IntEnum):
    """What a number is for: the third word of the counter."""

    token = 0
    """The token at a position; target and draft share it under the coupled rule."""
    accept = 1
    draft = 2
    """The draft's own choice, under the other rules."""
    residual = 3
    """The target's own choice after a rejection, and the bonus token."""


class Noise:
    """The noise of one generation.

    Args:
        seed: 0 <= seed < 2**64, the first word of the key.
        sample: which of several answers to the same prompt, the second word of the key.
    """

    def __init__(self, seed: int, sample: int = 0) -> None:
        self.seed, self.sample = seed, sample
        self._key = np.array([seed, sample], dtype=np.uint64)

    def exponentials(
        self,
        position: int,
        purpose: Purpose,
        vocab_size: int,
        tokens: Int64Array | None = None,
        *,
        attempt: int = 0,
    ) -> Float64Array:
        """Standard exponential numbers, one a token, f64[V] or f64[n].

        Args:
            position: of the token in the sequence, the prompt's first being 0.
            purpose: what for.
            vocab_size: V.
            tokens: ids i64[n] to give the numbers of; None: all.
            attempt: tells calls of the target apart that look at the same position; the coupled
                rule, whose tokens may not depend on it, leaves it 0.
        """
        if tokens is None:
            fractions = self._all(position, purpose, vocab_size, attempt)
        elif len(tokens) and tokens.max() < _FEW:
            fractions = self._all(position, purpose, int(tokens.max()) + 1, attempt)[tokens]
        else:
            fractions = _unit(self._some(position, purpose, tokens, attempt))
        np.subtract(1.0, fractions, out=fractions)
        np.log(fractions, out=fractions)
        return np.negative(fractions, out=fractions)

    def uniforms(
        self, position: int, purpose: Purpose, count: int, *, attempt: int = 0
    ) -> list[float]:
        """Numbers in [0, 1), those of token ids 0, 1, …; arguments as above."""
        found: list[float] = self._all(position, purpose, count, attempt).tolist() if count else []
        return found

    def _all(self, position: int, purpose: int, count: int, attempt: int) -> Float64Array:
        # numpy counts before it draws, and takes the upper 53 bits as we do.
        first = (position * _WORD + purpose * _WORD**2 + attempt * _WORD**3 - 1) % _WORD**4
        return np.random.Generator(np.random.Philox(counter=first, key=self._key)).random(count)

    def _some(self, position: int, purpose: int, tokens: Int64Array, attempt: int) -> UInt64Array:
        counter = np.empty((4, len(tokens)), dtype=np.uint64)
        counter[0] = tokens // 4
        counter[1:] = np.array([[position], [purpose], [attempt]], dtype=np.uint64)
        blocks = philox(counter, self.seed, self.sample)
        return np.asarray(blocks[tokens % 4, np.arange(len(tokens))])


def philox(counter: UInt64Array, seed: int, sample: int) -> UInt64Array:
    """Philox4x64-10 of counters u64[4, n] and the key (seed, sample), u64[4, n]."""
    keys = np.array([[seed], [sample]], dtype=np.uint64)
    step = np.array([[_STEPS[0]], [_STEPS[1]]], dtype=np.uint64)
    even, odd = counter[0::2], counter[1::2]  # words 0 and 2, words 1 and 3
    for _ in range(_ROUNDS):
        high, low = _multiply(even)
        even = high[::-1] ^ odd ^ keys
        odd = low[::-1]
        keys = keys + step
    out = np.empty_like(counter)
    out[0::2], out[1::2] = even, odd
    return out


def _multiply(values: UInt64Array) -> tuple[UInt64Array, UInt64Array]:
    """High and low words of the products of u64[2, n] with the two multipliers."""
    low, high = values & _LOW, values >> _HALF
    by_low, by_high = _MULTIPLIERS & _LOW, _MULTIPLIERS >> _HALF
    cross = high * by_low + ((low * by_low) >> _HALF)
    other = low * by_high + (cross & _LOW)
    return high * by_high + (cross >> _HALF) + (other >> _HALF), values * _MULTIPLIERS


def _unit(words: UInt64Array) -> Float64Array:
    """The upper 53 bits as a fraction, in [0, 1)."""
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
