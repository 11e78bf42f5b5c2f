"""How answers look: as chat messages, or as plain continuations of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

from specplug.context import Token
from specplug.generation import Generation
from specplug.text import Tokenizer

_LEAST_LOGPROB = -9999.0  # what OpenAI writes where JSON has no infinity


class Shape(ABC):
    """One protocol's objects. Of what may be long they have iterators, which JSON encodes as lists.

    Args:
        tokenizer: names tokens.
        logprobs: whether choices have them.
        origins: whether streamed choices have ``tokens``.
        as_ids: log-probabilities name tokens ``token_id:…``.
        echoed: a text that every answer begins with.
    """

    prefix: str
    """Of ids."""
    whole: str
    """``object`` of an answer that is not streamed."""
    piece: str
    """``object`` of a streamed one's pieces."""
    _part_prefix = ""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        logprobs: bool,
        origins: bool = False,
        as_ids: bool = False,
        echoed: str = "",
    ) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = logprobs
        self._with_origins = origins
        self._as_ids = as_ids
        self._echoed = echoed

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The choice that a stream begins with; None: none."""

    @abstractmethod
    def choice(self, index: int, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        """A whole choice."""

    def delta(self, index: int, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        """A piece of a streamed choice; ``reason``: why it is the last."""
        made = self._delta(index, tokens)
        made |= {"index": index, "finish_reason": reason}
        if self._with_origins:
            made["tokens"] = [
                {"id": token.id, "text": token.text, "origin": token.origin} for token in tokens
            ]
        return made

    def prompt_logprobs(self, generation: Generation) -> Iterator[dict[str, Any] | None]:
        """Of each of the prompt's tokens, by token ids as text, its own and the likeliest; null for
        the first. As vLLM has them.
        """
        found = generation.prompt_logprobs or ()
        for token, likely in zip(generation.prompt, found, strict=True):
            if likely is None:
                yield None
                continue
            ranked = [(token, likely.chosen, likely.rank)]
            ranked += [
                (other, value, rank)
                for rank, (other, value) in enumerate(likely.top, 1)
                if other != token
            ]
            yield {
                str(one): {
                    "logprob": max(value, _LEAST_LOGPROB),
                    "rank": rank,
                    "decoded_token": self._tokenizer.name(one),
                }
                for one, value, rank in ranked
            }

    @abstractmethod
    def _delta(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]: ...

    def _name(self, token: int, utf8: bytes) -> str:
        """A token in a log-probability: its text, of a part of a character the bytes."""
        if self._as_ids:
            return f"token_id:{token}"
        utf8 = utf8 or self._tokenizer.detokenizer.spell(token)
        try:
            return utf8.decode()
        except UnicodeDecodeError:
            return self._part_prefix + utf8.decode(errors="backslashreplace")

    def _spell(self, other: int, token: Token) -> bytes:
        """The bytes of a token at the place of one of the answer; none of special tokens."""
        if other == token.id:
            return token.utf8
        detokenizer = self._tokenizer.detokenizer
        return b"" if detokenizer.is_special(other) else detokenizer.spell(other)


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Whose words follow."""
        delta = {"role": "assistant", "content": self._echoed}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        """With a message."""
        text = self._echoed + _text(tokens)
        message = {"role": "assistant", "content": text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(tokens),
            "finish_reason": reason,
        }

    def _delta(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        text = _text(tokens)
        return {"delta": {"content": text} if text else {}, "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {"content": map(self._content, filter(_has_logprobs, tokens)), "refusal": None}

    def _content(self, token: Token) -> dict[str, Any]:
        assert token.logprobs is not None
        top = [self._logprob(token, *entry) for entry in token.logprobs.top]
        return {**self._logprob(token, token.id, token.logprobs.chosen), "top_logprobs": top}

    def _logprob(self, token: Token, other: int, value: float) -> dict[str, Any]:
        utf8 = self._spell(other, token)
        return {
            "token": self._name(other, utf8),
            "logprob": max(value, _LEAST_LOGPROB),
            "bytes": list(utf8) or None,
        }


class CompletionShape(Shape):
    """``/v1/completions``."""

    prefix = "cmpl"
    whole = piece = "text_completion"
    _part_prefix = "bytes:"  # as OpenAI's own completions name them

    def opening(self, index: int) -> None:
        """Nothing."""

    def choice(self, index: int, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        """With a text."""
        return {
            "index": index,
            "text": _text(tokens),
            "logprobs": self._logprobs(tokens),
            "finish_reason": reason,
        }

    def _delta(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        return {"text": _text(tokens), "logprobs": self._logprobs(tokens)}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        return {
            "tokens": (self._name(token.id, token.utf8) for token in tokens),
            "token_logprobs": (_chosen(token) for token in tokens),
            "top_logprobs": map(self._top, tokens),
            "text_offset": (token.offset for token in tokens),
        }

    def _top(self, token: Token) -> dict[str, float] | None:
        """The likeliest tokens and the chosen one, by their names. Of several with one name the
        likeliest has it, and the others are named by their ids: none is lost.
        """
        likely = token.logprobs
        if likely is None:
            return None
        entries = [*likely.top]
        if token.id not in dict(entries):
            entries.append((token.id, likely.chosen))
        found: dict[str, float] = {}
        for other, value in entries:
            name = self._name(other, self._spell(other, token))
            if name in found:
                name = f"token_id:{other}"
            found[name] = max(value, _LEAST_LOGPROB)
        return found


def _has_logprobs(token: Token) -> bool:
    return token.logprobs is not None


def _chosen(token: Token) -> float | None:
    return None if token.logprobs is None else max(token.logprobs.chosen, _LEAST_LOGPROB)


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)
