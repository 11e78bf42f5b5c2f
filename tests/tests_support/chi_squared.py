"""Counts against a distribution, and how large a difference has to be to be an error."""

from __future__ import annotations

import numpy as np


def statistic(counts: np.ndarray, expected: np.ndarray) -> float:
    """Chi-squared of counts; infinite if what cannot be was counted."""
    wanted = expected * counts.sum()
    if counts[wanted == 0].any():
        return float("inf")
    possible = wanted > 0
    return float(((counts - wanted)[possible] ** 2 / wanted[possible]).sum())


def critical(expected: np.ndarray) -> float:
    """What a right rule stays under in 9,999 of 10,000 runs."""
    draws = np.random.default_rng(0).chisquare(np.count_nonzero(expected) - 1, 1_000_000)
    return float(np.quantile(draws, 0.9999))


def power(expected: np.ndarray, sequences: int, error: float) -> float:
    """The share of runs that find an error of so much in total variation, of all such errors the
    one hardest to find: spread as the distribution itself is, so that its sum of squares over the
    expected is (2 * error)**2 a sequence.
    """
    random = np.random.default_rng(1)
    freedom = np.count_nonzero(expected) - 1
    found = random.noncentral_chisquare(freedom, sequences * (2 * error) ** 2, 1_000_000)
    return float((found > critical(expected)).mean())
