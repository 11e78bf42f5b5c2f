"""What a target said and thought, on disk: files of records that appear whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from specplug.types import Float32Array, Int32Array
from specplug.unfinished import unfinished

_SUFFIX = ".safetensors"
_OPEN = 64  # files at a time


@dataclass(frozen=True, slots=True)
class Record:
    """One answer, and what the target thought while it gave it."""

    id: int
    """Of its prompt."""
    tokens: Int32Array
    """Prompt and answer, i32[n]."""
    begin: int
    """Where the answer begins."""
    states: torch.Tensor
    """The target's hidden states at all tokens but the last, bf16[n - 1, W]."""
    ids: Int32Array
    """Before each token of the answer, the likeliest ones by the target, i32[n - begin, K]."""
    logits: Float32Array
    """Their raw logits, f32[n - begin, K]."""

    @property
    def nbytes(self) -> int:
        """On disk, nearly."""
        return sum(each.nbytes for each in (self.tokens, self.states, self.ids, self.logits))


class ShardWriter:
    """Writes records into files of about ``most_bytes`` each; leave the block to write the last.

    Args:
        folder: made if it is not there; files that are there already stay.
        most_bytes: of a file. Records of an unwritten one are lost with the process.
    """

    def __init__(self, folder: Path, most_bytes: int = 32 << 20) -> None:
        self._folder, self._most = folder, most_bytes
        self._records: list[Record] = []
        folder.mkdir(parents=True, exist_ok=True)
        self.written = sum(file.stat().st_size for file in folder.glob(f"*{_SUFFIX}"))
        """Bytes of all files in the folder."""

    def add(self, record: Record) -> None:
        """Take a record, and write a file if it is full."""
        self._records.append(record)
        if sum(each.nbytes for each in self._records) >= self._most:
            self.flush()

    def flush(self) -> None:
        """Write what there is."""
        if not self._records:
            return
        records, self._records = self._records, []
        tensors = {
            "id": torch.tensor([each.id for each in records]),
            "begin": torch.tensor([each.begin for each in records]),
            "length": torch.tensor([len(each.tokens) for each in records]),
            "tokens": torch.from_numpy(np.concatenate([each.tokens for each in records])),
            "states": torch.cat([each.states for each in records]),
            "ids": torch.from_numpy(np.concatenate([each.ids for each in records])),
            "logits": torch.from_numpy(np.concatenate([each.logits for each in records])),
        }
        final = self._folder / f"{min(each.id for each in records):08}{_SUFFIX}"
        with unfinished(final) as place:  # without the suffix: what a kill leaves is no shard
            save_file(tensors, place)
            self.written += place.stat().st_size
            place.rename(final)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.flush()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a record is: in a file, from an entry of each tensor on."""

    file: Path
    begin: int
    length: int
    token: int
    state: int
    answer: int


class Shards(Sequence[Record]):
    """The records of a folder, by id; read from disk when they are asked for."""

    def __init__(self, folder: Path) -> None:
        places: dict[int, _Place] = {}
        for file in sorted(folder.glob(f"*{_SUFFIX}")):
            places |= dict(_places(file))
        self._places = dict(sorted(places.items()))
        self.ids = tuple(self._places)
        """The records' ids, in order."""
        self._open = lru_cache(_OPEN)(_open)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Tokens of each record, prompt included."""
        return [place.length for place in self._places.values()]

    @property
    def answer_lengths(self) -> list[int]:
        """Tokens of each record's answer."""
        return [place.length - place.begin for place in self._places.values()]

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        return self._read(self.ids[index], states=True)

    def without_states(self) -> Iterator[Record]:
        """The records in order, without the hidden states, which are nearly all of the bytes."""
        for number in self.ids:
            yield self._read(number, states=False)

    def prompt_digests(self) -> list[bytes]:
        """Of each record, what tells its prompt from others."""
        return [
            blake2b(
                self._part(place, "tokens", place.token, place.begin).numpy().tobytes()
            ).digest()
            for place in self._places.values()
        ]

    def _read(self, number: int, *, states: bool) -> Record:
        place = self._places[number]
        part = partial(self._part, place)
        answer = place.length - place.begin
        return Record(
            id=number,
            tokens=part("tokens", place.token, place.length).numpy(),
            begin=place.begin,
            states=part("states", place.state, place.length - 1 if states else 0),
            ids=part("ids", place.answer, answer).numpy(),
            logits=part("logits", place.answer, answer).numpy(),
        )

    def _part(self, place: _Place, name: str, start: int, count: int) -> torch.Tensor:
        found: torch.Tensor = self._open(place.file).get_slice(name)[start : start + count]
        return found


def _open(file: Path) -> Any:
    return safe_open(file, framework="pt")


def _places(file: Path) -> Iterator[tuple[int, _Place]]:
    with safe_open(file, framework="pt") as opened:
        columns = [opened.get_tensor(name).tolist() for name in ("id", "begin", "length")]
    token = state = answer = 0
    for number, begin, length in zip(*columns, strict=True):
        yield number, _Place(file, begin, length, token, state, answer)
        token, state, answer = token + length, state + length - 1, answer + length - begin
