"""Text in and out: the bundle's tokenizer, its chat template, and streaming detokenization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import tokenizers
from tokenizers.decoders import DecodeStream

from specplug.prompts import TemplateOptions, refuse_template_options, render_chat
from specplug.templates import compile_template
from specplug.types import BundleError

Messages = Sequence[Mapping[str, str]]


class Tokenizer:
    """A ``tokenizer.json`` with what its model needs beside it.

    Args:
        path: the ``tokenizer.json`` file.
        stop_token_ids: tokens that end an answer.
        chat_template: Jinja source that turns messages into a prompt; rendered in a sandbox.
        special_tokens: what the template may name, such as ``{"bos_token": "<s>"}``.

    Raises:
        BundleError: the file is not a tokenizer, or the template is not Jinja.
    """

    def __init__(
        self,
        path: Path,
        *,
        stop_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self.backend = whole_encoding(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{path.name} is not a tokenizer: {error}") from error
        self.stop_token_ids = tuple(stop_token_ids)
        self._for_grammars: dict[tuple[int, tuple[int, ...]], Any] = {}
        self.special_tokens = dict(special_tokens or {})
        self._template = None
        if chat_template is not None:
            try:
                self._template = compile_template(chat_template)
            except ValueError as error:
                raise BundleError(str(error)) from error

    @property
    def has_chat_template(self) -> bool:
        """Whether messages can be rendered."""
        return self._template is not None

    def render(self, messages: Messages, **options: Unpack[TemplateOptions]) -> str:
        """The prompt text of a conversation, ready for the assistant's answer.

        Args:
            messages: the conversation.
            options: see :class:`specplug.prompts.TemplateOptions`.

        Raises:
            ValueError: there is no template, it refuses these messages, or an option cannot be
                followed.
        """
        if self._template is None:
            raise ValueError("this bundle has no chat template: pass text with chat=False (--raw)")
        return render_chat(self._template, messages, self.special_tokens, **options)

    def encode_prompt(
        self,
        prompt: str | Messages,
        *,
        chat: bool | None = None,
        **options: Unpack[TemplateOptions],
    ) -> list[int]:
        """Token ids of text or messages; see :meth:`SpeculativeDecoder.encode`."""
        if not isinstance(prompt, str):
            return self.encode(self.render(prompt, **options), special_tokens=False)
        if self.has_chat_template if chat is None else chat:
            messages = [{"role": "user", "content": prompt}]
            return self.encode(self.render(messages, **options), special_tokens=False)
        refuse_template_options(
            options, "this prompt is not put through one" if chat is False else "there is none"
        )
        return self.encode(prompt)

    def encode(self, text: str, *, special_tokens: bool = True) -> list[int]:
        """Token ids of ``text``; ``special_tokens``: with what the tokenizer adds around it."""
        ids: list[int] = self.backend.encode(text, add_special_tokens=special_tokens).ids
        return ids

    def for_grammars(self, vocab_size: int, stop_token_ids: tuple[int, ...]) -> Any:
        """An ``llguidance.LLTokenizer`` of these tokens, made once.

        Raises:
            ValueError: the library does not understand this kind of tokenizer.
        """
        key = vocab_size, stop_token_ids
        if key not in self._for_grammars:
            from llguidance import LLTokenizer

            try:
                self._for_grammars[key] = LLTokenizer(
                    self.backend.to_str(), n_vocab=vocab_size, eos_token=list(stop_token_ids)
                )
            except Exception as error:  # the library raises bare Exception
                raise ValueError(f"no structured output with this tokenizer: {error}") from error
        return self._for_grammars[key]

    def name(self, token: int) -> str:
        """A token as text, special tokens by their names; "" for a row that no token has."""
        text: str = self.backend.decode([token], skip_special_tokens=False)
        return text

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, special tokens left out."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=True)
        return text


def whole_encoding(backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """The tokenizer itself, without what shortens, lengthens or varies its tokens of a text.

    ``tokenizer.json`` may keep the truncation, the padding and the dropout of its training.
    """
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return backend


class TextStream:
    """Turns tokens into text one at a time, holding back what cannot be shown yet.

    That is bytes which are not yet a character, and what may be the beginning of a stop string.

    Args:
        tokenizer: None: there is no text.
        stop: strings that end the text; nothing of the one that comes to its end first is shown.
        shown: tokens that come before, whose text is not watched for stop strings.
    """

    def __init__(
        self, tokenizer: Tokenizer | None, stop: Sequence[str] = (), shown: Sequence[int] = ()
    ) -> None:
        self._tokenizer = tokenizer
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._unseen: list[int] = []  # tokens since the last that completed any text
        self._sent = 0
        self._stop: Sequence[str] = ()
        self._held = ""
        self.stopped = False
        """Whether a stop string was found."""
        self.shown = [self.push(token) for token in shown]
        """The pieces of text of those tokens."""
        self._stop = stop

    def push(self, token: int, *, last: bool = False, ending: bool = True) -> str:
        """The text that ``token`` completes.

        Args:
            token: the next one.
            last: give whatever is still held back, too.
            ending: False: a stop string that comes to its end within this token's text is text.
        """
        if self._tokenizer is None:
            return ""
        self._tokens.append(token)
        text = self._decoder.step(self._tokenizer.backend, token) or ""
        self._sent += len(text)
        self._unseen = [] if text else [*self._unseen, token]
        if last and self._unseen and self._tokenizer.decode(self._unseen):
            # Only bytes that never became a character are left, so this cannot reword the rest.
            text += self._tokenizer.decode(self._tokens)[self._sent :]
        return self._watched(text, last, ending) if self._stop else text

    def _watched(self, text: str, last: bool, ending: bool) -> str:
        earlier = len(self._held)
        text = self._held + text
        ends = [
            (at + len(stop), at)
            for stop in self._stop
            if (at := text.find(stop, max(0, earlier + 1 - len(stop)))) >= 0
        ]
        if ends and ending:
            self.stopped = True
            return text[: min(ends)[1]]
        kept = 0 if last else max(_overlap(text, stop) for stop in self._stop)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept]


def _overlap(text: str, stop: str) -> int:
    """How much of the end of ``text`` is the beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
