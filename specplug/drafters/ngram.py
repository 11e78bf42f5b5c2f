"""Prompt lookup: what followed the last time these tokens stood together is likely to follow again.

Works where the answer repeats the prompt or itself: quotes, edits, summaries, code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specplug.types import Int64Array, Proposal


class NgramDrafter:
    """Drafts the continuation of the longest earlier match of the context's end.

    Args:
        prompt_lookup_min: the shortest match that is worth a draft, in tokens.
        prompt_lookup_max: matches are not lengthened beyond this; the latest of the longest wins.
    """

    name = "ngram"

    def __init__(self, *, prompt_lookup_min: int = 2, prompt_lookup_max: int = 16) -> None:
        if not 1 <= prompt_lookup_min <= prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min {prompt_lookup_min} and prompt_lookup_max "
                f"{prompt_lookup_max}: need 1 <= min <= max"
            )
        self._shortest = prompt_lookup_min
        self._longest = prompt_lookup_max

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """At most ``k`` tokens that followed the best match; none if no match is long enough."""
        end = len(context) - 1
        matches = np.flatnonzero(context[:end] == context[end])  # last positions of matches
        for length in range(1, self._longest):
            if not len(matches):
                return Proposal()
            # One token further back: positions before the start can never match.
            earlier = matches[matches >= length]
            longer = earlier[context[earlier - length] == context[end - length]]
            if not len(longer):
                if length < self._shortest:
                    return Proposal()
                break
            matches = longer
        start = int(matches[-1]) + 1
        return Proposal(tuple(context[start : start + k].tolist()))

    def commit(self, tokens: Sequence[int]) -> None:
        """Nothing to note: every proposal looks at the whole context."""

    def reset(self) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""
