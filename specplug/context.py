"""The state of one generation: its tokens, their text, and whether it is finished."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from specplug.logprobs import TokenLogprobs
from specplug.text import TextStream
from specplug.types import Int64Array

Origin = Literal["draft", "corrected", "bonus", "plain"]
"""A token that was drafted and accepted; the target's own where a draft was rejected; its own after
drafts that were all accepted; its own where nothing was drafted."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token; ``str(token)`` is the text that it completes, possibly empty, and possibly more
    than its own: what was held back before.
    """

    id: int
    text: str
    origin: Origin
    """Who made it."""
    logprobs: TokenLogprobs | None = None
    """If asked for."""
    offset: int = 0
    """Characters of the text before the token's own, the echoed prompt's included."""
    utf8: bytes = b""
    """The token's own bytes in the text, which need not be whole characters; none for a special or
    a stop token that is not shown. Those of all tokens together are the text's.
    """

    @property
    def from_draft(self) -> bool:
        """Whether a drafter proposed it; else it is the target's own."""
        return self.origin == "draft"

    def __str__(self) -> str:
        return self.text


class Context:
    """The committed tokens of one generation.

    Args:
        prompt: token ids, at least one.
        text: where the answer's text comes from.
        max_tokens: of the answer.
        limit: tokens that a sequence can have.
        stop_token_ids: what ends an answer.
        min_tokens: of the answer, before a stop string ends it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        text: TextStream,
        *,
        max_tokens: int,
        limit: int,
        stop_token_ids: frozenset[int],
        min_tokens: int = 0,
    ) -> None:
        self._tokens = np.empty(min(len(prompt) + max_tokens, limit), dtype=np.int64)
        self._tokens[: len(prompt)] = prompt
        self.length = len(prompt)
        self.cached = 0  # tokens whose cache entries the target holds
        self.text = text
        self._stop = stop_token_ids
        self._earliest = len(prompt) + min_tokens  # a stop string may end the answer after it
        self._limit_name = "length" if len(prompt) + max_tokens <= limit else "context"
        self.finish_reason: str | None = None

    @property
    def tokens(self) -> Int64Array:
        """The prompt's and the answer's so far, i64[length], not to be written to."""
        found = self._tokens[: self.length]
        found.flags.writeable = False  # drafters and processors see it
        return found

    @property
    def room(self) -> int:
        """Tokens that may still come."""
        return len(self._tokens) - self.length

    def commit(
        self, tokens: Sequence[int], own: Origin, logprobs: Sequence[TokenLogprobs] | None
    ) -> list[Token]:
        """Append up to and including the token that ends the answer; returns what was appended.

        Args:
            tokens: all but the last of them drafted.
            own: what the last one is.
            logprobs: theirs, if asked for.
        """
        made: list[Token] = []
        for position, token in enumerate(tokens):
            self._tokens[self.length] = token
            self.length += 1
            if token in self._stop:
                self.finish_reason = "stop"
            elif not self.room:
                self.finish_reason = self._limit_name
            text = self.text.push(
                token,
                last=self.finish_reason is not None,
                ending=self.length > self._earliest,
            )
            if self.text.stopped:
                self.finish_reason = "stop"
            details = logprobs[position] if logprobs else None
            origin: Origin = "draft" if position < len(tokens) - 1 else own
            made.append(Token(token, text, origin, details, self.text.offset, self.text.utf8))
            if self.finish_reason is not None:
                break
        return made
