"""Acceptance rules: pure functions from the target's scores and a proposal to a verdict.

Whatever is drafted, what they commit has the target's distribution. ``p_target`` and ``p_draft``
are probabilities after the same temperature, penalties and truncations.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specplug.types import Float64Array, Int64Array, Proposal, Verdict


def accept_greedy(best: Int64Array, proposal: Proposal) -> Verdict:
    """Accept drafted tokens while each equals the target's best token at its position.

    Args:
        best: the target's argmax at the last committed token and after each drafted one, i64[n]
            with n > len(proposal); entry i judges drafted token i, and the entry after the
            accepted ones is the bonus token. Further entries (padding) are ignored.
        proposal: a chain of drafted tokens, possibly empty.

    Returns:
        The verdict. The committed text, drafted[:accepted] + [bonus], is what greedy decoding
        one token at a time gives, whatever was drafted.
    """
    wanted = best.tolist()
    accepted = 0
    for drafted in proposal.tokens:
        if drafted != wanted[accepted]:
            break
        accepted += 1
    return Verdict(accepted, wanted[accepted])


def race(weights: Float64Array, exponentials: Float64Array) -> int:
    """The entry that a distribution and noise choose: the argmax of weight / noise.

    Each entry finishes at a time that is exponential with its weight as rate; the first one is
    distributed as the weights, and does not depend on what else they are divided by. (The Gumbel
    trick with one logarithm; arXiv:2408.07978 couples two models by sharing the noise.)

    Args:
        weights: f64[n], not all 0; need not add up to 1.
        exponentials: independent standard exponential numbers, f64[n].
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        times = exponentials / weights
    first = int(times.argmin())
    return first if times[first] >= 0 else int(np.nanargmin(times))  # 0/0 is no time at all


def rejection_chances(
    p_target: Sequence[Float64Array], p_draft: Sequence[Float64Array], drafted: Sequence[int]
) -> list[float]:
    """The chance of accepting each drafted token, those before it accepted: min(1, p_t / p_d).

    Leviathan et al., arXiv:2211.17192; Chen et al., arXiv:2302.01318.
    """
    return [
        min(1.0, float(target[token] / draft[token]))
        for target, draft, token in zip(p_target, p_draft, drafted, strict=False)
    ]


def residual(p_target: Float64Array, p_draft: Float64Array, scale: float = 1.0) -> Float64Array:
    """What the target's own token is drawn from after a rejection: max(0, scale * p_t - p_d).

    f64[V], unnormalised. All 0 only where a rejection cannot happen.
    """
    left = (p_target if scale == 1 else scale * p_target) - p_draft
    return np.maximum(left, 0.0, out=left)


def block_chances(
    p_target: Sequence[Float64Array], p_draft: Sequence[Float64Array], drafted: Sequence[int]
) -> tuple[list[float], list[float]]:
    """Block verification (arXiv:2403.10444): how many tokens to accept is decided for all together.

    Args:
        p_target: rows that judge the k drafted tokens and the one after, k + 1 times f64[V].
        p_draft: rows the drafted tokens were drawn from, k times f64[V].
        drafted: the k tokens.

    Returns:
        For i = 0..k, the chance that the first i tokens pass, judged each by its own number: the
        longest prefix that passes is accepted (0 tokens always pass). And the scales s_i of the
        :func:`residual` that is drawn from after it.
    """
    scales = [1.0]
    for target, draft, token in zip(p_target, p_draft, drafted, strict=False):
        scales.append(min(1.0, scales[-1] * float(target[token] / draft[token])))
    chances = [1.0]
    for i, scale in enumerate(scales[1:-1], start=1):
        left = float(residual(p_target[i], p_draft[i], scale).sum())
        chances.append(left / (left + 1 - scale) if left else 0.0)
    return [*chances, scales[-1]][: len(scales)], scales
