"""What ends an answer, beside what may be chosen: contradictions are refused before any work."""

from __future__ import annotations

from collections.abc import Set

from specplug.sampling import SamplingParams


def check_ends(params: SamplingParams, ends: Set[int], own: Set[int], *, min_tokens: int) -> None:
    """Refuse stop tokens that must come and may not, or the other way round.

    Args:
        params: how tokens are chosen.
        ends: the tokens that end the answer.
        own: those that end an answer of this decoder where nothing is asked for.
        min_tokens: of the answer, before one of them may be chosen.

    Raises:
        ValueError: naming the options that exclude one another.
    """
    if min_tokens:
        params.check_choice(ends)
    for place, token in params.forced_tokens.items():
        if token in ends and place < min_tokens:
            raise ValueError(
                f"forced_tokens: token {token} at {place} ends the answer before min_tokens "
                f"{min_tokens}"
            )
    if not params.structured:
        return
    form = params.forms[0]
    if own and not ends:
        raise ValueError(
            f"ignore_eos with {form}: an answer of that form ends with a stop token: give "
            "stop_token_ids"
        )
    if ends and not params.may_choose(ends):
        raise ValueError(
            f"allowed_token_ids or banned_tokens with {form}: an answer of that form ends with a "
            "stop token, and none of them may come"
        )
