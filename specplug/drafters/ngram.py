"""Prompt lookup: what followed the last time these tokens stood together is likely to follow again.

Works where the answer repeats the prompt or itself: quotes, edits, summaries, code. The suffix
source finds more; this is the rule that other tools have, under their names.
"""

from __future__ import annotations

import numpy as np

from specplug.arguments import checked
from specplug.drafters.chances import Kind
from specplug.drafters.matching import longest_matches
from specplug.drafters.source import Guess, Source
from specplug.drafters.tree import TreeDrafter
from specplug.types import Int64Array

_BLOCK = 2048  # tokens that are searched first
_PRIOR = (0.2, 0.35, 0.5, 0.65, 0.8)

Place = tuple[int, int]
"""The index of the guessed token in the context, and the length of the match before the draft."""


class NgramSource(Source):
    """Guesses the continuation of the longest earlier match of the context's end.

    Args:
        prompt_lookup_min: the shortest match that is worth a draft, in tokens.
        prompt_lookup_max: matches are not lengthened beyond this; the latest of the longest wins.
    """

    name = "ngram"

    @checked()
    def __init__(self, *, prompt_lookup_min: int = 2, prompt_lookup_max: int = 16) -> None:
        if not 1 <= prompt_lookup_min <= prompt_lookup_max:
            raise ValueError(
                f"prompt_lookup_min {prompt_lookup_min} and prompt_lookup_max "
                f"{prompt_lookup_max}: need 1 <= min <= max"
            )
        self._shortest = prompt_lookup_min
        self._longest = prompt_lookup_max
        self._context: Int64Array = np.empty(0, dtype=np.int64)

    def fork(self) -> NgramSource:
        """Of another text."""
        return NgramSource(prompt_lookup_min=self._shortest, prompt_lookup_max=self._longest)

    def begin(self, context: Int64Array) -> Place | None:
        """After the best match; None if no match is long enough."""
        self._context = context
        best: Place = (0, 0)
        until, size = len(context) - 1, _BLOCK
        while until > 0:  # a match that cannot be longer ends the search, as texts that repeat have
            start = max(until - size, 0)
            lead = min(start, self._longest)  # what matches that end in the block may begin with
            ends, length = longest_matches(
                context[start - lead : until], context, self._longest, lead
            )
            if length > best[1]:
                best = (start - lead + int(ends[-1]) + 1, length)
            if length >= min(self._longest, len(context)):
                break
            until, size = start, 2 * size
        return best if best[1] >= self._shortest else None

    def step(self, place: Place, token: int) -> Place | None:
        """One further along the match; None where it ended, or another token came."""
        index, length = place
        if index >= len(self._context) or self._context[index] != token:
            return None
        return index + 1, length

    def guesses(self, place: Place) -> list[Guess]:
        """The next token of the match."""
        index, length = place
        if index >= len(self._context):
            return []
        return [Guess(int(self._context[index]), length.bit_length())]

    def prior(self, kind: Kind) -> float:
        """The longer the match, the better."""
        assert isinstance(kind, int)
        return _PRIOR[min(kind, len(_PRIOR)) - 1]


class NgramDrafter(TreeDrafter):
    """Prompt lookup alone; for its arguments see :class:`NgramSource`."""

    @checked()
    def __init__(self, *, prompt_lookup_min: int = 2, prompt_lookup_max: int = 16) -> None:
        super().__init__(
            "ngram",
            [NgramSource(prompt_lookup_min=prompt_lookup_min, prompt_lookup_max=prompt_lookup_max)],
        )
