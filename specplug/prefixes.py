"""Prompts that begin alike are read once: their pieces' cache entries, kept for later requests."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np

from specplug.arguments import checked
from specplug.engine_calls import load, save
from specplug.feeding import Observe
from specplug.types import HIDDEN_STATES, BatchEngine, EngineError, Float32Array, Int64Array

PIECE = 64
"""Tokens of a prompt that one call reads, counted from its beginning whatever the load; pieces that
are whole may be reused. Running answers wait for one piece at most."""

DEFAULT_BYTES = 1 << 30
"""Of memory for cache entries that no request is using, and the hidden states beside them."""


@dataclass(frozen=True, slots=True)
class _Piece:
    entries: Any
    states: Float32Array | None  # [PIECE, D]

    @property
    def nbytes(self) -> int:
        return int(self.entries.nbytes) + (0 if self.states is None else self.states.nbytes)


class _Kept:
    """What is kept of one tenant, the longest unused first."""

    def __init__(self) -> None:
        self.pieces: OrderedDict[bytes, _Piece] = OrderedDict()
        self.bytes = 0

    def touch(self, keys: Sequence[bytes]) -> None:
        """They were used now; the first of them goes last, for without it the others are lost."""
        for key in reversed(keys):
            if key in self.pieces:
                self.pieces.move_to_end(key)


class PrefixCache:
    """Whole pieces of prompts, each known by all tokens up to its end.

    Where there is no room, the tenant with the most bytes gives up its longest unused piece. So of
    ``T`` tenants none loses anything while it has a ``T``-th of the room or less.

    An entry is the target's own, computed in a call of the same tokens at the same places, so
    reusing it changes no text. Hidden states are kept beside them, if the target gives any, so that
    a head that reads them drafts as if the prompt had been read. Texts of different tenants are
    kept apart, so that nobody can find out by the time it takes what others asked.

    Args:
        most_bytes: of memory at most; 0 keeps nothing.
    """

    @checked()
    def __init__(self, most_bytes: int = DEFAULT_BYTES) -> None:
        if most_bytes < 0:
            raise ValueError(f"prefix cache of {most_bytes} bytes: need 0 or more")
        self.most_bytes = most_bytes
        self.bytes = 0
        """Kept now."""
        self._tenants: dict[str, _Kept] = {}  # the longest unused first

    def load(
        self,
        engine: BatchEngine,
        row: int,
        tenant: str,
        prompt: Sequence[int],
        observe: Observe,
    ) -> int:
        """Fill a row with what is kept of a prompt; returns how many tokens of it.

        At least one token is left to read, for its scores.

        Args:
            engine: the target.
            row: of it.
            tenant: on whose behalf.
            prompt: token ids.
            observe: told of each piece whose hidden states are kept, by scores of no token.

        Raises:
            EngineError: the engine failed; the row may hold anything.
        """
        found: list[bytes] = []
        kept = self._used(tenant)
        for key in _keys(tenant, prompt[:-1]):
            if key not in kept.pieces:
                break
            piece, start = kept.pieces[key], PIECE * len(found)
            load(engine, row, start, piece.entries)
            if piece.states is not None:
                told = _Recalled(engine.spec.vocab_size, piece.states)
                observe(start, prompt[start : start + PIECE], told)
            found.append(key)
        kept.touch(found)
        return PIECE * len(found)

    def save(
        self,
        engine: BatchEngine,
        row: int,
        tenant: str,
        prompt: Sequence[int],
        states: Mapping[int, Float32Array],
    ) -> None:
        """Keep the whole pieces of a prompt that a row holds, as many as there is room for.

        Args:
            engine: the target.
            row: of it.
            tenant: on whose behalf.
            prompt: token ids.
            states: of each piece, by its first token's position, the hidden states, f32[PIECE, D];
                empty: the target gives none.

        Raises:
            EngineError: the engine failed; the pieces before are kept.
        """
        keys = [*_keys(tenant, prompt)] if self.most_bytes else []
        kept = self._used(tenant)
        kept.touch(keys)
        for number, key in enumerate(keys):
            if key in kept.pieces:
                continue
            start = PIECE * number
            piece = _Piece(save(engine, row, start, start + PIECE), states.get(start))
            if not self._make_room(piece.nbytes, kept, keys):
                break
            self._tenants.setdefault(tenant, kept)
            kept.pieces[key] = piece
            kept.bytes += piece.nbytes
            self.bytes += piece.nbytes
        kept.touch(keys)

    def _used(self, tenant: str) -> _Kept:
        """What is kept of a tenant, which becomes the last of them if anything is."""
        kept = self._tenants.pop(tenant, None)
        if kept is None:
            return _Kept()
        self._tenants[tenant] = kept
        return kept

    def _make_room(self, size: int, own: _Kept, keys: Sequence[bytes]) -> bool:
        """Forget pieces until there is room for one of a tenant; its prompt's own ones are kept."""
        if size > self.most_bytes:
            return False
        while self.bytes + size > self.most_bytes:
            largest = max(self._tenants.values(), key=lambda kept: kept.bytes)
            victim = own if own.pieces and own.bytes + size >= largest.bytes else largest
            oldest = next(iter(victim.pieces))
            if victim is own and oldest in keys:  # nothing is left but this prompt's own
                return False
            freed = victim.pieces.pop(oldest).nbytes
            victim.bytes -= freed
            self.bytes -= freed
            if not victim.pieces:
                self._tenants = {name: one for name, one in self._tenants.items() if one.pieces}
        return True

    def clear(self) -> None:
        """Forget everything."""
        self._tenants.clear()
        self.bytes = 0


class _Recalled:
    """What is left of a call: its hidden states."""

    def __init__(self, vocab_size: int, states: Float32Array) -> None:
        self._vocab_size, self._states = vocab_size, states

    def argmax(self) -> Int64Array:
        return np.empty((1, 0), dtype=np.int64)

    def logits(self) -> Float32Array:
        return np.empty((1, 0, self._vocab_size), dtype=np.float32)

    def hidden(self, name: str) -> Float32Array:
        if name != HIDDEN_STATES:
            raise EngineError(f"no hidden states {name!r} were kept: have {HIDDEN_STATES!r}")
        return self._states[None]


def _keys(tenant: str, prompt: Sequence[int]) -> Iterator[bytes]:
    """Of each whole piece of a prompt: a digest of the tenant and all tokens up to its end."""
    digest = sha256(tenant.encode() + b"\0")
    for start in range(0, len(prompt) - PIECE + 1, PIECE):
        digest.update(np.array(prompt[start : start + PIECE], dtype=np.int64).tobytes())
        yield digest.digest()
