"""Acceptance rules: pure functions from the target's scores and a proposal to a verdict.

Whatever is drafted, what they commit has the target's distribution. ``p_target`` and ``p_draft``
are probabilities after the same temperature, penalties and truncations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specplug.types import Float64Array, Int64Array, Proposal, Verdict


def follow(proposal: Proposal, own: Callable[[Sequence[int]], int]) -> Verdict:
    """Accept drafted tokens for as long as one of them is the target's own choice.

    Args:
        proposal: a tree of drafted tokens, possibly empty.
        own: from the accepted tokens' indices so far to the target's choice after them. It may
            depend on nothing else of the proposal, so that the text does not, either.
    """
    children = proposal.children()
    path: list[int] = []
    at = -1
    while True:
        token = own(path)
        for child in children.get(at, ()):
            if proposal.tokens[child] == token:
                break
        else:
            return Verdict(tuple(path), token)
        path.append(child)
        at = child


def accept_greedy(best: Int64Array, proposal: Proposal) -> Verdict:
    """Accept drafted tokens that are the target's best ones.

    Args:
        best: the target's argmax at the last committed token and after each drafted one, i64[n]
            with n > len(proposal). Further entries (padding) are ignored.
        proposal: a tree of drafted tokens, possibly empty.

    Returns:
        The verdict. The committed text, the accepted tokens and the bonus, is what greedy decoding
        one token at a time gives, whatever was drafted.
    """
    wanted = best.tolist()
    return follow(proposal, lambda path: wanted[path[-1] + 1 if path else 0])


def race(weights: Float64Array, exponentials: Float64Array) -> int:
    """The entry that a distribution and noise choose: the argmax of weight / noise.

    Each entry finishes at a time that is exponential with its weight as rate; the first one is
    distributed as the weights, and does not depend on what else they are divided by. (The Gumbel
    trick with one logarithm; arXiv:2408.07978 couples two models by sharing the noise.)

    Args:
        weights: f64[n], not all 0; need not add up to 1.
        exponentials: independent standard exponential numbers, f64[n].
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        times = exponentials / weights
    first = int(times.argmin())
    return first if times[first] >= 0 else int(np.nanargmin(times))  # 0/0 is no time at all


def residual(p_target: Float64Array, p_draft: Float64Array, scale: float = 1.0) -> Float64Array:
    """What the target's own token is drawn from after a rejection: max(0, scale * p_t - p_d).

    f64[V], unnormalised. All 0 only where a rejection cannot happen.
    """
    left = (p_target if scale == 1 else scale * p_target) - p_draft
    return np.maximum(left, 0.0, out=left)


def try_siblings(
    weights: Float64Array,
    p_draft: Sequence[Float64Array],
    entries: Sequence[int | None],
    uniforms: Sequence[float],
) -> tuple[list[float], int | None, Float64Array]:
    """Rejection sampling over the drafted tokens that may follow one, each tried in turn.

    The first is accepted with min(1, p_target / p_draft) (Leviathan et al., arXiv:2211.17192; Chen
    et al., arXiv:2302.01318); the next ones likewise against what is left of the target's
    distribution (SpecInfer, arXiv:2305.09781).

    Args:
        weights: of the target's tokens, f64[n], unnormalised.
        p_draft: what each sibling was drawn from, the ones before it left out, f64[n] each.
        entries: where the siblings are among the n; None: the target never gives one.
        uniforms: numbers in [0, 1), one each: a sibling is accepted if its chance is larger.

    Returns:
        The chances of those that were tried; which one was accepted, or None; and what the
        target's own token is to be drawn from if none was, f64[n], unnormalised.
    """
    chances: list[float] = []
    for which, (draft, entry) in enumerate(zip(p_draft, entries, strict=True)):
        total = weights.sum()
        chance = 0.0 if entry is None else float(weights[entry] / total / draft[entry])
        chances.append(min(chance, 1.0))
        if uniforms[which] < chance:
            return chances, which, weights
        left = residual(weights, total * draft)
        if not left.any():  # the two are equal, and rounding alone made the chance less than 1
            chances[-1] = 1.0
            return chances, which, weights
        weights = left
    return chances, None, weights


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
