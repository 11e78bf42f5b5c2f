"""From tokens to text one at a time, as the tokenizer decodes all of them at once.

Whole texts are decoded by the ``tokenizers`` library; its ``DecodeStream`` raises where byte tokens
turn out to be no UTF-8, and a window of tokens decoded again, as servers do it, loses spaces that a
decoder strips. Here a token's text is looked up once, and what depends on its neighbours is a small
state: bytes that are not yet a character, and spaces that are stripped from the beginning.
"""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import tokenizers

from specplug.spelling import decoder_parts, in_bytes, unfinished

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


class Decoding(ABC):
    """The text of a growing sequence of tokens; special ones are left out by the caller."""

    @abstractmethod
    def push(self, token: int) -> str:
        """The text that is certain now and was not before."""

    @abstractmethod
    def flush(self) -> str:
        """The rest of the text, if no token follows."""

    @abstractmethod
    def settle(self) -> str:
        """The rest of the text but for an incomplete character, which later tokens may complete."""

    @property
    def open(self) -> str:
        """Whole characters at the end that later tokens could still turn into others."""
        return ""

    @property
    def open_length(self) -> int:
        """How many those are."""
        return 0


class Detokenizer:
    """How the tokens of one tokenizer become text.

    Args:
        backend: of any kind. Byte-level BPE, and decoders of SentencePiece's kind, with and without
            byte fallback, are followed exactly; others through windows of a few tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._special = {
            token for token, added in backend.get_added_tokens_decoder().items() if added.special
        }
        parts = decoder_parts(backend.decoder)
        self._byte_level = [part["type"] for part in parts] == ["ByteLevel"]
        self._pieces = None if self._byte_level else _Pieces.of(parts)
        self._known: dict[int, bytes | str | None] = {}

    def is_special(self, token: int) -> bool:
        """Whether it is flagged as one that is not text."""
        return token in self._special

    def begin(self) -> Decoding:
        """The text of no tokens yet."""
        if self._byte_level:
            return _ByteLevel(self)
        if self._pieces is not None:
            return _WithFallback(self, self._pieces)
        return _Windows(self._backend)

    def piece(self, token: int) -> bytes | str | None:
        """What a token adds to a text: bytes that need not be whole characters, or characters.
        None: there is no such token.
        """
        if token not in self._known:
            text: str | None = self._backend.id_to_token(token)
            self._known[token] = text if text is None else self._read(token, text)
        return self._known[token]

    def first_piece(self, token: int) -> bytes | str | None:
        """What it adds as the first token of a text; only of SentencePiece's kind another."""
        text: str | None = self._backend.id_to_token(token)
        assert self._pieces is not None
        return None if text is None else self._pieces.read(text, first=True)

    def _read(self, token: int, text: str) -> bytes | str:
        if self._byte_level:
            return in_bytes(text)
        if self._pieces is not None:
            return self._pieces.read(text)
        found: str = self._backend.decode([token], skip_special_tokens=False)
        return found

    def spell(self, token: int) -> bytes:
        """A token's own bytes in the middle of a text; none for a row that no token has."""
        piece = self.piece(token) or b""
        return piece.encode() if isinstance(piece, str) else piece

    def context_begins(self, tokens: Sequence[int], *, skip_special: bool) -> int:
        """From which token on a text must be read to know the state at its end."""
        found = 0
        for index in range(len(tokens) - 1, -1, -1):
            if skip_special and self.is_special(tokens[index]):
                continue
            piece = self.piece(tokens[index])
            if self._byte_level:
                found += len(piece or b"")
                enough = found > 3  # bytes of an incomplete character at most
            elif self._pieces is not None:
                enough = isinstance(piece, str) and bool(piece.lstrip(self._pieces.strip or None))
            else:
                found += bool(piece)
                enough = found >= _CONTEXT
            if enough:
                return index
        return 0


class _ByteLevel(Decoding):
    """Of byte-level BPE: the bytes of all tokens, read as UTF-8."""

    def __init__(self, detokenizer: Detokenizer) -> None:
        self._piece = detokenizer.piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        return self._decoder.decode(self._piece(token) or b"")  # type: ignore[arg-type]

    def flush(self) -> str:
        return self._decoder.decode(b"", True)

    def settle(self) -> str:
        return ""


class _Pieces:
    """The description of a decoder in which a token's text hardly depends on its neighbours."""

    def __init__(self) -> None:
        self.replaced: list[tuple[str, str]] = []
        self.mark = ""
        """A mark of spaces that stands for none in the first token."""
        self.fallback = False
        self.strip, self.strip_most = "", 0
        """A character that is stripped from the beginning of the text, so often at most."""

    @classmethod
    def of(cls, parts: Sequence[dict[str, Any]]) -> _Pieces | None:
        """None: of another kind."""
        made, fused = cls(), False
        for part in parts:
            match part:
                case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)} if (
                    not made.fallback and not fused
                ):
                    made.replaced.append((old, new))
                case {"type": "Metaspace", "replacement": str(mark)} if (
                    not made.fallback and not fused and not made.mark
                ):
                    made.replaced.append((mark, " "))
                    if part.get("prepend_scheme", "always") != "never":
                        made.mark = mark
                case {"type": "ByteFallback"} if not made.fallback and not fused:
                    made.fallback = True
                case {"type": "Fuse"}:
                    fused = True
                case {"type": "Strip", "content": str(one), "start": int(most), "stop": 0} if (
                    fused and not made.strip
                ):
                    made.strip, made.strip_most = one, most
                case _:
                    return None
        return made if parts else None

    def read(self, text: str, *, first: bool = False) -> bytes | str:
        """What a token adds to a text, or to its beginning."""
        for old, new in self.replaced:
            text = text.replace(old, "" if first and old == self.mark else new)
        if self.fallback and (found := _BYTE.fullmatch(text)):
            return bytes.fromhex(found[1])
        return text


class _WithFallback(Decoding):
    """Texts of tokens, and runs of byte tokens. A run that is not UTF-8 as a whole is a replacement
    character a byte, so nothing of it is certain before it ends or is broken.
    """

    def __init__(self, detokenizer: Detokenizer, pieces: _Pieces) -> None:
        self._piece = detokenizer.piece
        self._first: Callable[[int], bytes | str | None] | None = detokenizer.first_piece
        self._strip, self._most = pieces.strip, pieces.strip_most
        self._run = bytearray()
        self._broken = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")
        self._length = 0  # characters that the run has so far

    def push(self, token: int) -> str:
        piece = self._first(token) if self._first else self._piece(token)
        if piece is None:
            return ""
        self._first = None
        if isinstance(piece, bytes):
            return self._stripped(self._byte(piece))
        return self._stripped(self._end_run() + piece)

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def settle(self) -> str:
        rest = b""
        if not self._broken and (pending := unfinished(bytes(self._run[-4:]))):
            rest = bytes(self._run[-pending:])
            del self._run[-pending:]
        text = self._stripped(self._end_run())
        for byte in rest:
            self._byte(bytes([byte]))
        return text

    @property
    def open(self) -> str:
        whole = len(self._run) - unfinished(bytes(self._run[-4:]))
        text = "" if self._broken else self._run[:whole].decode()
        return text[self._dropped :]

    @property
    def open_length(self) -> int:
        return self._length - self._dropped

    @property
    def _dropped(self) -> int:
        """Characters of the run that will be stripped, if it ends as it is."""
        if not self._most or not self._length:
            return 0
        begin = self._run[: 4 * self._most].decode(errors="ignore")[: self._most]
        return len(begin) - len(begin.lstrip(self._strip))

    def _byte(self, byte: bytes) -> str:
        if self._broken:
            return REPLACEMENT
        self._run += byte
        try:
            self._length += len(self._utf8.decode(byte))
        except UnicodeDecodeError:
            text = REPLACEMENT * len(self._run)
            self._end_run()
            self._broken = True
            return text
        return ""

    def _end_run(self) -> str:
        text = ""
        if self._run:
            try:
                text = self._run.decode()
            except UnicodeDecodeError:
                text = REPLACEMENT * len(self._run)
        self._run.clear()
        self._utf8.reset()
        self._broken, self._length = False, 0
        return text

    def _stripped(self, text: str) -> str:
        while self._most and text:
            if text[0] != self._strip:
                self._most = 0
            else:
                text, self._most = text[1:], self._most - 1
        return text


_CONTEXT = 4  # tokens of a window that tell what the first of a text is not


class _Windows(Decoding):
    """Of any other kind: the last few tokens are decoded again with each new one."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._window: list[int] = []
        self._sent = 0  # characters of the window's text

    def push(self, token: int) -> str:
        if self._backend.id_to_token(token) is None:
            return ""
        self._window.append(token)
        text = self._text()
        if text.endswith(REPLACEMENT) and len(self._window) < 4 * _CONTEXT:
            return ""
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        if len(self._window) >= 2 * _CONTEXT:
            shorter = self._window[-_CONTEXT:]
            if left := self._backend.decode(shorter, skip_special_tokens=False):
                self._window, self._sent = shorter, len(left)
        return new

    def flush(self) -> str:
        text = self._text()
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new

    def settle(self) -> str:
        text = self._text().rstrip(REPLACEMENT)
        new, self._sent = text[self._sent :], max(self._sent, len(text))
        return new

    def _text(self) -> str:
        text: str = self._backend.decode(self._window, skip_special_tokens=False)
        return text
