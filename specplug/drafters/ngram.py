"""Prompt lookup: what followed the last time these tokens stood together is likely to follow again.

Works where the answer repeats the prompt or itself: quotes, edits, summaries, code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specplug.sampler import Sampler
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
        ends = np.flatnonzero(context[:end] == context[end])  # where matches of one token end
        length = 1 if len(ends) else 0
        while 0 < length < self._longest:
            reaching = ends[ends >= length]  # the others begin with the context
            longer = reaching[context[reaching - length] == context[end - length]]
            if not len(longer):
                break
            ends, length = longer, length + 1
        if length < self._shortest:
            return Proposal()
        start = int(ends[-1]) + 1
        return Proposal(tuple(context[start : start + k].tolist()))

    def commit(self, tokens: Sequence[int]) -> None:
        """Nothing to note: every proposal looks at the whole context."""

    def reset(self, sampler: Sampler) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""
