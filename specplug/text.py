"""Text in and out: the bundle's tokenizer, its chat template, and streaming detokenization."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence, Set
from contextlib import suppress
from pathlib import Path
from typing import Any, Unpack

import tokenizers

from specplug.arguments import checked
from specplug.detokenizer import Detokenizer
from specplug.library_errors import LibraryError
from specplug.prompts import TemplateOptions, refuse_template_options, render_chat
from specplug.stop_strings import StopStrings
from specplug.templates import compile_template
from specplug.token_bytes import most_bytes
from specplug.types import BundleError

Messages = Sequence[Mapping[str, Any]]

_LONG = 4096  # characters of a text that is tokenized without holding up other threads


class Tokenizer:
    """A ``tokenizer.json`` with what its model needs beside it.

    Args:
        path: the ``tokenizer.json`` file.
        stop_token_ids: tokens that end an answer.
        chat_template: Jinja source that turns messages into a prompt; rendered in a sandbox.
        special_tokens: what the template may name, such as ``{"bos_token": "<s>"}``.

    Raises:
        TypeError: an unknown keyword.
        ValueError: an argument of a wrong type.
        BundleError: the file is not a tokenizer, or the template is not Jinja.
    """

    @checked()
    def __init__(
        self,
        path: str | Path,
        *,
        stop_token_ids: Sequence[int] = (),
        chat_template: str | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> None:
        try:
            self.backend = whole_encoding(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{Path(path).name} is not a tokenizer: {error}") from error
        self.detokenizer = Detokenizer(self.backend)
        """How its tokens become text one at a time."""
        self.stop_token_ids = tuple(stop_token_ids)
        self._most_bytes = most_bytes(self.backend)
        self._making = threading.Lock()
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

    @property
    def template_variables(self) -> frozenset[str]:
        """The names that the chat template reads; empty without one."""
        return frozenset() if self._template is None else self._template.variables

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
        """Token ids of ``text``; ``special_tokens``: with what the tokenizer adds around it.

        Raises:
            ValueError: the text has half of a surrogate pair, which no UTF-8 has.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {error.start} of the text is half of a surrogate pair "
                f"(U+{ord(text[error.start]):04X}): it is no Unicode text"
            ) from None
        if len(text) < _LONG:
            ids: list[int] = self.backend.encode(text, add_special_tokens=special_tokens).ids
            return ids
        # The library lets other threads run meanwhile in this call alone.
        [made] = self.backend.encode_batch_fast([text], add_special_tokens=special_tokens)
        return list(made.ids)

    def special_ids(self) -> dict[str, int]:
        """Ids of special tokens by their text."""
        added = self.backend.get_added_tokens_decoder()
        return {one.content: token for token, one in added.items() if one.special}

    def encode_within(self, text: str) -> list[int]:
        """Token ids of a part of a text: nothing is put before or around it.

        A tokenizer may put a space before a text, or what begins one; so the part is tokenized
        behind a line break or a letter where its tokens alone spell another text.
        """
        for anchor in ("", "\n", "a", ".", " "):
            ids = self.encode(anchor + text, special_tokens=False)
            cut = len(self.encode(anchor, special_tokens=False)) if anchor else 0
            own = b"".join(map(self.detokenizer.spell, ids[cut:]))
            if own.decode(errors="replace") == text:
                return ids[cut:]
        return self.encode(text, special_tokens=False)

    def encode_after(self, before: Sequence[int], text: str) -> list[int]:
        """Token ids of text that goes on after tokens; after special ones alone it begins."""
        if self.begins_text(before):
            return self.encode(text, special_tokens=False)
        return self.encode_within(text)

    def begins_text(self, before: Sequence[int]) -> bool:
        """Whether text after these tokens is the first: all of them are special, or have none."""
        pieces = self.detokenizer
        return all(pieces.is_special(token) or not pieces.spell(token) for token in before)

    def fewest_tokens(self, text: str) -> int:
        """A number of tokens that a text has at least, known without tokenizing it."""
        return -(-len(text.encode(errors="replace")) // self._most_bytes) if self._most_bytes else 0

    def for_grammars(self, vocab_size: int, stop_token_ids: tuple[int, ...]) -> Any:
        """An ``llguidance.LLTokenizer`` of these tokens, made once.

        Raises:
            ValueError: the library does not understand this kind of tokenizer.
        """
        key = vocab_size, stop_token_ids
        with self._making:
            if key in self._for_grammars:
                return self._for_grammars[key]
            from llguidance import LLTokenizer

            try:
                self._for_grammars[key] = LLTokenizer(
                    self.backend.to_str(), n_vocab=vocab_size, eos_token=list(stop_token_ids)
                )
            except Exception as error:  # the library raises bare Exception
                raise LibraryError(
                    "no structured output with this tokenizer", str(error)
                ) from error
            return self._for_grammars[key]

    def name(self, token: int) -> str:
        """A token as it is in the middle of a text, special tokens by their names; "" for a row
        that no token has, replacement characters for parts of characters.
        """
        return self.detokenizer.spell(token).decode(errors="replace")

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of token ids, special tokens left out or by their names."""
        text: str = self.backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
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

    That is bytes which are not yet a character, and what may be the beginning of a stop string. The
    pieces together are the text of all tokens decoded at once, up to where it stops.

    Args:
        tokenizer: None: there is no text.
        stop: strings that end the text; of those that come to their end first the longest counts.
        shown: tokens that come before; their text, :attr:`shown`, is not watched for stop strings.
        after: tokens that come before and are not shown, such as the prompt: the text goes on where
            theirs ends.
        skip_special_tokens: leave special tokens out; else they are shown by their names.
        include_stop: show the stop string, or the stop token's own text; else neither is shown.
        stop_token_ids: tokens that end the text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        stop: Sequence[str] = (),
        shown: Sequence[int] = (),
        *,
        after: Sequence[int] = (),
        skip_special_tokens: bool = True,
        include_stop: bool = False,
        stop_token_ids: Set[int] = frozenset(),
    ) -> None:
        self._detokenizer = tokenizer.detokenizer if tokenizer else None
        self._decoding = tokenizer.detokenizer.begin() if tokenizer else None
        self._skip_special = skip_special_tokens
        self._include_stop = include_stop
        self._stops = StopStrings(())
        self._stop_token_ids: Set[int] = frozenset()
        self._held = ""  # certain text that may begin a stop string
        self._certain = 0  # characters of the text, those held back included
        self._exempt = 0  # characters of the text within which no stop string ends
        self.offset = 0
        """Characters of the text before the latest token."""
        self.utf8 = b""
        """The latest token's own bytes in the text; none if it is not shown."""
        self.stopped = False
        """Whether a stop string was found."""
        if self._detokenizer is not None and self._decoding is not None and after:
            begin = self._detokenizer.context_begins(after, skip_special=skip_special_tokens)
            for token in after[begin:]:
                self._decode(token)
            self._decoding.settle()
        self._certain = 0
        self.shown = [(self.push(token), self.offset, self.utf8) for token in shown]
        """Of each of those tokens its piece of text, and :attr:`offset` and :attr:`utf8`."""
        self._watched_from = self._length
        self._stops = StopStrings(stop)
        self._stop_token_ids = stop_token_ids

    @property
    def _length(self) -> int:
        """Characters of the text so far, those that are not certain included."""
        return self._certain + (self._decoding.open_length if self._decoding else 0)

    def push(self, token: int, *, last: bool = False, ending: bool = True) -> str:
        """The text that ``token`` completes.

        Args:
            token: the next one.
            last: give whatever is still held back, too.
            ending: False: a stop string that comes to its end within this token's text is text.
        """
        if self._decoding is None:
            return ""
        self.offset = self._length
        hidden = token in self._stop_token_ids and not self._include_stop
        text, self.utf8 = ("", b"") if hidden else self._decode(token)
        if last:
            rest = self._decoding.flush()
            self._certain += len(rest)
            text += rest
        if not self._stops:
            return text
        if not ending:
            self._exempt = self._length
        return self._watched(text, last)

    def _decode(self, token: int) -> tuple[str, bytes]:
        """The text that is certain with a token and was not before, and the token's own bytes."""
        assert self._detokenizer is not None
        assert self._decoding is not None
        if self._skip_special and self._detokenizer.is_special(token):
            return "", b""
        before = self._length
        text = self._decoding.push(token)
        self._certain += len(text)
        utf8, longer = self._detokenizer.spell(token), self._length - before
        if longer < len(utf8):  # a first space may be stripped
            with suppress(UnicodeDecodeError):
                own = utf8.decode()
                utf8 = own[max(0, len(own) - longer) :].encode()
        return text, utf8

    def _watched(self, text: str, last: bool) -> str:
        """What may be shown of the text, now that some more of it is certain."""
        assert self._decoding is not None
        begin = self._certain - len(text)
        skipped = max(0, self._watched_from - begin)
        found = self._stops.read(text[skipped:], begin + skipped, self._exempt)
        if found is None and (open_text := self._decoding.open):
            skipped = max(0, self._watched_from - self._certain)
            found = self._stops.peek(open_text[skipped:], self._certain + skipped, self._exempt)
        begin -= len(self._held)
        whole = self._held + text
        if found is not None:
            self.stopped = True
            end, at = found
            shown_to = (end if self._include_stop else at) - begin
            return (whole + self._decoding.open)[:shown_to]
        kept = 0 if last else self._stops.begun
        self._held = whole[len(whole) - kept :]
        return whole[: len(whole) - kept]
