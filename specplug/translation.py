"""From a target's tokens to those of a draft with another tokenizer, and back: through bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate, pairwise

import numpy as np

from specplug.spelling import Spelling
from specplug.types import Int32Array

_KEPT = 24  # pieces at the end of a text that are encoded anew with every piece that is added
_LEAD = 8  # pieces before them that are encoded with them
_CUTS = 16  # places for a cut that are tried
_ROLES = ("bos_token", "eos_token")


class Translation:
    """Two tokenizers, and which tokens they share.

    A special token is the one of the same content, or of the same role where contents differ (what
    begins and ends a text), or is read as the text that it is written as.

    Args:
        target: the target's.
        draft: the draft's.
        target_size: tokens of the target that count have ids below it.
        draft_size: those of the draft.
    """

    def __init__(
        self, target: Spelling, draft: Spelling, *, target_size: int, draft_size: int
    ) -> None:
        self.target, self.draft = target, draft
        self._sizes = target_size, draft_size
        self._for_draft = _by_role(target, draft)
        self._for_target = _by_role(draft, target)

    def for_draft(self, token: int) -> bytes:
        """The bytes that the draft reads for a token of the target; b"" for none."""
        if token in self._for_draft:
            return self._for_draft[token]
        return self.target[token] or b""

    def for_target(self, token: int) -> bytes | None:
        """The bytes that the target reads for a token of the draft; None: it has none such."""
        if token in self._for_target:
            return self._for_target[token] or None
        spelt = self.draft[token]
        if spelt is None or not self.draft.is_special(token):
            return spelt or None
        return spelt if self.target.special(spelt.decode()) is not None else None

    @cached_property
    def shared(self) -> tuple[Int32Array, Int32Array]:
        """The tokens that both have: the target's ids i32[n], ascending, and the draft's i32[n]."""
        target_size, draft_size = self._sizes
        theirs = self.draft.meanings()
        pairs = [
            (token, theirs[meaning])
            for meaning, token in self.target.meanings().items()
            if meaning in theirs
        ]
        pairs += [
            (token, counterpart)
            for token, content in self._for_draft.items()
            if (counterpart := self.draft.special(content.decode())) is not None
        ]
        pairs = [pair for pair in sorted(pairs) if pair[0] < target_size and pair[1] < draft_size]
        found = np.array(pairs, dtype=np.int32).reshape(-1, 2)
        return found[:, 0].copy(), found[:, 1].copy()

    @cached_property
    def counterparts(self) -> dict[int, int]:
        """The draft's token of each of the target's that both have."""
        ours, theirs = self.shared
        return dict(zip(ours.tolist(), theirs.tolist(), strict=True))

    def agreement(self, text: str) -> float:
        """The share of the target's tokens of a text that are also the draft's, at its place."""
        ours, theirs = (
            _spans(spelling, spelling.encode_words(text.encode())[0])
            for spelling in (self.target, self.draft)
        )
        return len(ours & theirs) / max(len(ours), 1)


def _spans(spelling: Spelling, tokens: Sequence[int]) -> set[tuple[int, int]]:
    """Where in their text tokens begin and end, in bytes."""
    ends = list(accumulate(len(spelling[token] or b"") for token in tokens))
    return set(pairwise([0, *ends]))


def _by_role(source: Spelling, other: Spelling) -> dict[int, bytes]:
    """What the special tokens in a role are in the other tokenizer, where it has not the same."""
    found: dict[int, bytes] = {}
    for role in _ROLES:
        content, counterpart = source.roles.get(role, ""), other.roles.get(role, "")
        token = source.special(content)
        if token is not None and other.special(content) is None:
            found[token] = b"" if other.special(counterpart) is None else counterpart.encode()
    return found


class Reader:
    """The target's committed tokens as the draft's, kept up to date as they grow.

    The end of the text alone is encoded anew: what comes before a cut is settled once both sides
    of it are encoded alone as they are together.

    Args:
        translation: between the two.
    """

    def __init__(self, translation: Translation) -> None:
        self._translation = translation
        self.text = bytearray()
        """As the draft reads it, from the first token on."""
        self.settled: list[int] = []
        """Tokens of the draft that stay as they are."""
        self._lead = b""  # the end of the settled text, for the sake of what its end says
        self._leading = 0  # its tokens
        self._pieces: list[bytes] = []  # what follows, a token of the target each
        self._open: list[int] | None = []
        self._cut_from = 2 * _KEPT  # pieces

    def read(self, tokens: Sequence[int]) -> None:
        """More of the target's tokens."""
        for token in tokens:
            piece = self._translation.for_draft(token)
            if not self.text and self._translation.target.begins_with_space:
                piece = piece.removeprefix(b" ")
            self._pieces.append(piece)
            self.text += piece
        self._open = self._encode(b"".join(self._pieces))
        if len(self._pieces) > self._cut_from and self._open is not None:
            self._settle(self._open)

    def open(self, more: bytes = b"") -> list[int] | None:
        """The tokens after the settled ones, of the text with some more at its end; None: it ends
        in a part of a character that has none.
        """
        return self._encode(b"".join(self._pieces) + more) if more else self._open

    def _encode(self, text: bytes) -> list[int] | None:
        draft = self._translation.draft
        tokens = draft.encode(self._lead + text)
        if tokens is None:
            return None
        tokens = tokens[self._leading :]
        if not self.settled and tokens[: len(draft.beginning)] != [*draft.beginning]:
            tokens = [*draft.beginning, *tokens]
        return tokens

    def _settle(self, tokens: list[int]) -> None:
        """Cut the text at the latest place that does not matter to its tokens."""
        draft = self._translation.draft
        for kept in range(_KEPT, _KEPT + _CUTS):
            before, after = self._pieces[:-kept], self._pieces[-kept:]
            left = self._encode(b"".join(before))
            lead = b"".join(before[-_LEAD:])
            leading = draft.encode(lead)
            whole = draft.encode(lead + b"".join(after))
            if left is None or leading is None or whole is None:
                continue
            right = tokens[len(left) :]
            if tokens[: len(left)] == left and whole[len(leading) :] == right:
                self.settled += left
                self._lead, self._leading = lead, len(leading)
                self._pieces, self._open, self._cut_from = after, right, 2 * _KEPT
                return
        self._cut_from = len(self._pieces) + _KEPT  # what is tried in vain is not tried every time
