"""How answers look: as chat messages, or as plain continuations of a text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from specplug.context import Token
from specplug.text import Tokenizer

_LEAST_LOGPROB = -9999.0  # what OpenAI writes where JSON has no infinity


class Shape(ABC):
    """One protocol's objects.

    Args:
        tokenizer: names tokens.
        logprobs: whether choices have them.
        origins: whether streamed choices have ``tokens``.
    """

    prefix: str
    """Of ids."""
    whole: str
    """``object`` of an answer that is not streamed."""
    piece: str
    """``object`` of a streamed one's pieces."""

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool, origins: bool = False) -> None:
        self._tokenizer = tokenizer
        self._with_logprobs = logprobs
        self._with_origins = origins

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

    @abstractmethod
    def _delta(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]: ...

    def _name(self, token: int) -> str:
        return self._tokenizer.name(token)


class ChatShape(Shape):
    """``/v1/chat/completions``."""

    prefix = "chatcmpl"
    whole = "chat.completion"
    piece = "chat.completion.chunk"

    def opening(self, index: int) -> dict[str, Any]:
        """Whose words follow."""
        delta = {"role": "assistant", "content": ""}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, index: int, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        """With a message."""
        message = {"role": "assistant", "content": _text(tokens), "refusal": None}
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
        content = []
        for token in tokens:
            if token.logprobs is not None:
                top = [self._logprob(other, value) for other, value in token.logprobs.top]
                chosen = self._logprob(token.id, token.logprobs.chosen)
                content.append({**chosen, "top_logprobs": top})
        return {"content": content, "refusal": None}

    def _logprob(self, token: int, value: float) -> dict[str, Any]:
        name = self._name(token)
        whole = "\N{REPLACEMENT CHARACTER}" not in name  # else a part of a character
        return {
            "token": name,
            "logprob": max(value, _LEAST_LOGPROB),
            "bytes": list(name.encode()) if whole else None,
        }


class CompletionShape(Shape):
    """``/v1/completions``."""

    prefix = "cmpl"
    whole = piece = "text_completion"

    def __init__(self, tokenizer: Tokenizer, *, logprobs: bool, origins: bool = False) -> None:
        super().__init__(tokenizer, logprobs=logprobs, origins=origins)
        self._lengths: dict[int, int] = {}  # characters that were streamed, by choice

    def opening(self, index: int) -> None:
        """Nothing."""

    def choice(self, index: int, tokens: Sequence[Token], reason: str) -> dict[str, Any]:
        """With a text."""
        return {
            "index": index,
            "text": _text(tokens),
            "logprobs": self._logprobs(tokens, 0),
            "finish_reason": reason,
        }

    def _delta(self, index: int, tokens: Sequence[Token]) -> dict[str, Any]:
        before = self._lengths.get(index, 0)
        text = _text(tokens)
        self._lengths[index] = before + len(text)
        return {"text": text, "logprobs": self._logprobs(tokens, before)}

    def _logprobs(self, tokens: Sequence[Token], offset: int) -> dict[str, Any] | None:
        if not self._with_logprobs:
            return None
        found: dict[str, list[Any]] = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            likely = token.logprobs
            found["tokens"].append(self._name(token.id))
            found["token_logprobs"].append(likely and max(likely.chosen, _LEAST_LOGPROB))
            found["top_logprobs"].append(
                likely
                and {self._name(other): max(value, _LEAST_LOGPROB) for other, value in likely.top}
            )
            found["text_offset"].append(offset)
            offset += len(token.text)
        return found


def _text(tokens: Sequence[Token]) -> str:
    return "".join(token.text for token in tokens)
