"""Acceptance rules: pure functions from the target's scores and a proposal to a verdict."""

from __future__ import annotations

from specplug.types import Int64Array, Proposal, Verdict


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
