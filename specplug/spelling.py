"""What the tokens of a tokenizer are as bytes, so that those of two can be compared."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import tokenizers

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes one


class Spelling:
    """The bytes of every token of a tokenizer, and the tokens of bytes.

    Args:
        backend: byte-level BPE, or of SentencePiece's kind.
        special_tokens: contents by role, such as ``{"eos_token": "</s>"}``.
        stop_token_ids: tokens that end a text.

    Raises:
        ValueError: of another kind, whose tokens do not tell the text one by one.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        special_tokens: Mapping[str, str],
        stop_token_ids: Sequence[int],
    ) -> None:
        self._backend = backend
        self.roles = special_tokens
        self.stops = frozenset(stop_token_ids)
        self._added = backend.get_added_tokens_decoder()
        decoders = decoder_parts(backend.decoder)
        kinds = [decoder["type"] for decoder in decoders]
        self._byte_level = "ByteLevel" in kinds
        self._byte_names = "ByteFallback" in kinds  # tokens such as <0x0A>
        if not self._byte_level and not any(map(_writes_spaces, decoders)):
            raise ValueError(
                f"its decoder is {' and '.join(kinds) or 'missing'}, and only tokens of byte-level "
                "BPE and of SentencePiece tell the text one by one"
            )
        self.begins_with_space = not self._byte_level
        """Whether it puts a space, which is none of the text, before it."""
        framed = backend.encode("a") if self.encode_words(b"a")[0] else None
        first = framed.special_tokens_mask.index(0) if framed else 0
        self.beginning: tuple[int, ...] = tuple(framed.ids[:first]) if framed else ()
        """The tokens that it puts before a text."""
        self._known: dict[int, bytes | None] = {}

    def __getitem__(self, token: int) -> bytes | None:
        """A token's bytes, the content of an added one; None: there is no such token."""
        if token not in self._known:
            self._known[token] = self._spelt(token)
        return self._known[token]

    def is_special(self, token: int) -> bool:
        """Whether it stands for something else than its text."""
        return token in self._added and bool(self._added[token].special)

    def special(self, content: str) -> int | None:
        """The special token of this content, if there is one."""
        token: int | None = self._backend.token_to_id(content)
        return token if token is not None and self.is_special(token) else None

    def meanings(self) -> dict[Hashable, int]:
        """The first token of each meaning: of each run of bytes, written in letters of byte-level
        BPE, and of each special content, in a tuple.
        """
        found: dict[Hashable, int] = {}
        for text, token in self._backend.get_vocab(with_added_tokens=False).items():
            if token in self._added or self._names_byte(text):
                continue
            letters = text if self._byte_level else _in_letters(_spaced(text).encode())
            found[letters] = min(token, found.get(letters, token))
        for token, added in self._added.items():
            special, content = bool(added.special), str(added.content)
            found.setdefault((content,) if special else _in_letters(content.encode()), token)
        return found

    def encode(self, text: bytes) -> list[int] | None:
        """The tokens of bytes, as the tokenizer cuts them; None: the part of a character that they
        end with has none.
        """
        tokens, _ = self.encode_words(text)
        rest = unfinished(text)
        parts = self._parts(text[len(text) - rest :]) if rest else []
        return None if parts is None else tokens + parts

    def encode_words(self, text: bytes) -> tuple[list[int], list[int | None]]:
        """The tokens of the whole characters, and the number of the word that each is a part of:
        what follows a word does not change its tokens. None at all for a text that has none.
        """
        whole = text[: len(text) - unfinished(text)].decode(errors="replace")
        try:
            found = self._backend.encode(whole, add_special_tokens=False)
        except Exception:  # bare: an unknown character, and no token for those
            return [], []
        return found.ids, found.word_ids

    def _parts(self, part: bytes) -> list[int] | None:
        """The tokens of a part of a character: one, or one a byte."""
        if self._byte_level:
            names = [_in_letters(part)]
            if self._backend.token_to_id(names[0]) is None:
                names = [*names[0]]
        else:
            names = [f"<0x{byte:02X}>" for byte in part]
        found = [self._backend.token_to_id(name) for name in names]
        tokens = [token for token in found if token is not None]
        return tokens if len(tokens) == len(found) else None

    def _names_byte(self, text: str) -> bool:
        return self._byte_names and len(text) == 6 and text.startswith("<0x")

    def _spelt(self, token: int) -> bytes | None:
        if token in self._added:
            return str(self._added[token].content).encode()
        text: str | None = self._backend.id_to_token(token)
        if text is None:
            return None
        if self._byte_level:
            return in_bytes(text)
        return bytes.fromhex(text[3:5]) if self._names_byte(text) else _spaced(text).encode()


def unfinished(text: bytes) -> int:
    """How many bytes at the end are the beginning of a character of UTF-8."""
    for back in range(1, min(len(text), 3) + 1):
        byte = text[-back]
        if byte >= 0xC0:
            return back if back < 2 + (byte >= 0xE0) + (byte >= 0xF0) else 0
        if byte < 0x80:
            break
    return 0


def _letters() -> list[str]:
    """How byte-level BPE writes each byte: printable ones as themselves, others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


_LETTERS = _letters()
_BYTES = {letter: byte for byte, letter in enumerate(_LETTERS)}


def in_bytes(text: str) -> bytes:
    """The bytes that letters of byte-level BPE stand for; of another text its own."""
    letters = [_BYTES.get(letter) for letter in text]
    known = [letter for letter in letters if letter is not None]
    return bytes(known) if len(known) == len(letters) else text.encode()


def _in_letters(text: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in text)


def _spaced(text: str) -> str:
    return text.replace(_SPACE, " ")


def decoder_parts(decoder: Any) -> list[dict[str, Any]]:
    """The description of a decoder, of a sequence each of its parts."""
    if decoder is None:
        return []
    found = json.loads(decoder.__getstate__())
    return list(found["decoders"]) if found["type"] == "Sequence" else [found]


def _writes_spaces(decoder: dict[str, Any]) -> bool:
    """Whether it turns SentencePiece's mark into spaces."""
    if decoder["type"] == "Metaspace":
        return bool(decoder["replacement"] == _SPACE)
    return bool(decoder["type"] == "Replace" and decoder["pattern"] == {"String": _SPACE})
