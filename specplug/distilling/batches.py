"""Records cut into pieces, and pieces put together to batches, one after the other without padding.

A record's entry i is made of its token i + 1 and the target's hidden state of position i, and
guesses token i + 2, as in :mod:`specplug.export.head`. Only guesses of the answer are learnt, but
for its first token, which no draft is of; the entries before are there to be looked back at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from specplug.distilling.shards import Record
from specplug.types import Int32Array, Int64Array

_READERS = 8  # processes
ABREAST = {"cpu": 1, "cuda": 64}
"""Pieces of a rectangle, by device."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Successive entries of a record, of which the last ones guess its answer."""

    record: int
    """Its place in the sequence of records."""
    first: int
    """The first entry."""
    entries: int
    answers: int
    """How many of them guess, the last ones."""


def pieces_of(place: int, tokens: int, begin: int, row: int) -> list[Piece]:
    """The pieces, of up to ``row`` entries, of a record of so many tokens."""
    guessing = begin - 1  # the first token of an answer comes with the prompt's last scores
    made = []
    for first in range(0, tokens - 2, row):
        stop = min(first + row, tokens - 2)
        if stop > guessing:
            made.append(Piece(place, first, stop - first, stop - max(first, guessing)))
    return made


def held_out(prompts: Sequence[bytes], share: float, most: int) -> frozenset[int]:
    """Of a sequence of records the places of those not to learn from.

    Which ones depends on their prompts alone, so more records do not move any of them over, and no
    prompt has one answer that is learnt from and another that is measured on.

    Args:
        prompts: digests of the records' prompts.
        share: of all prompts; at least one.
        most: records, but for further ones of the last prompt; the same ones whatever the share.
    """
    drawn = [int.from_bytes(digest, "little") / 2 ** (8 * len(digest)) for digest in prompts]
    chosen = sorted(value for value in drawn if value < share)[:most] or sorted(drawn)[:1]
    return frozenset(place for place, value in enumerate(drawn) if value <= chosen[-1])


def grouped(pieces: Sequence[Piece], entries: int) -> list[list[Piece]]:
    """Pieces in their order, as many a batch as together have no more than ``entries``."""
    batches: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if not batches or piece.entries > room:
            batches.append([])
            room = entries
        batches[-1].append(piece)
        room -= piece.entries
    return batches


def shuffled(pieces: Sequence[Piece], entries: int, seed: int, epoch: int) -> list[list[Piece]]:
    """The batches of an epoch."""
    order = np.random.default_rng([seed, epoch]).permutation(len(pieces))
    return grouped([pieces[place] for place in order], entries)


@dataclass(frozen=True, slots=True)
class Rectangle:
    """Pieces of a batch side by side, padded: P pieces of up to L entries, a of them guessing."""

    entries: torch.Tensor
    """Their places in the batch, i64[P, L]."""
    guesses: torch.Tensor
    """Places among the batch's guessing entries, i64[P, a]."""
    unseen: torch.Tensor
    """The entries that a guess does not see, bool[P, 1, a, L]; what pads sees all."""
    kept: torch.Tensor
    """Which of P * a are no padding, i64[guessing]."""

    def flatten(self, values: torch.Tensor) -> torch.Tensor:
        """One guess after the other, [heads, group, guessing, ...].

        Args:
            values: [heads, P, group, a, ...].
        """
        return values.transpose(1, 2).flatten(2, 3)[:, :, self.kept]


def rectangle(spans: Sequence[tuple[int, int]], entry: int, guess: int) -> Rectangle:
    """The rectangle of successive pieces.

    Args:
        spans: entries, and those of them that guess (the last), of each piece.
        entry: place of the first entry.
        guess: place of the first guess.
    """
    counts, guessing = np.array(spans).T[..., None]
    columns, rows = np.arange(counts.max()), np.arange(guessing.max())
    first = entry + np.cumsum(counts, 0) - counts
    begin = guess + np.cumsum(guessing, 0) - guessing
    real = rows < guessing
    last_seen = np.where(real, counts - guessing + rows, len(columns))
    return Rectangle(
        entries=torch.from_numpy(first + np.minimum(columns, counts - 1)),
        guesses=torch.from_numpy(begin + np.minimum(rows, guessing - 1)),
        unseen=torch.from_numpy(columns > last_seen[..., None])[:, None],
        kept=torch.from_numpy(np.flatnonzero(real)),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Pieces one after the other: N entries, of which A guess, in S own steps each.

    A guess of own step s, counted from 0, at entry i is of token i + 2 + s.
    """

    rectangles: tuple[Rectangle, ...]
    """All pieces."""
    tokens: torch.Tensor
    """Of the entries, i64[N]."""
    positions: torch.Tensor
    """From 0 in each piece, i64[N]."""
    states: torch.Tensor
    """The target's, bf16[N, W]."""
    guessing: torch.Tensor
    """Which entries, i64[A]."""
    read: torch.Tensor
    """The token that each own step reads, i64[S, A]; those of step 0 are the entries' own."""
    wanted: torch.Tensor
    """The token that follows it, by its place in the draft vocabulary, i64[S, A]; -1: none, or
    it is not in there."""
    counts: torch.Tensor
    """Whether there is one, bool[S, A]: records end."""
    ids: torch.Tensor
    """The target's likeliest tokens by their places in the draft vocabulary, i64[S, A, K]."""
    shares: torch.Tensor
    """Their probabilities among the K, f32[S, A, K]; 0 for those that are not in there."""

    def to(self, device: str) -> Batch:
        """The same on a device."""
        rectangles = tuple(_moved(each, device) for each in self.rectangles)
        return replace(_moved(self, device), rectangles=rectangles)


_Tensors = TypeVar("_Tensors", Rectangle, Batch)


def _moved(tensors: _Tensors, device: str) -> _Tensors:
    moved = {
        name: value.to(device, non_blocking=True)
        for name in tensors.__slots__
        if isinstance(value := getattr(tensors, name), torch.Tensor)
    }
    return replace(tensors, **moved)  # type: ignore[arg-type]  # mypy takes all for rectangles


_BY_STEP = ("read", "wanted", "counts", "ids", "shares")


class Collator:
    """Makes batches of pieces.

    Args:
        records: the sequence that the pieces are of.
        vocabulary: ids of the draft vocabulary, ascending.
        vocab_size: of the target.
        own_steps: S.
        abreast: pieces of a rectangle; more are fewer and larger products, and padding.
    """

    def __init__(
        self,
        records: Sequence[Record],
        vocabulary: Int32Array,
        vocab_size: int,
        own_steps: int,
        abreast: int = 1,
    ) -> None:
        self._records, self._steps, self._abreast = records, own_steps, abreast
        self._places: Int64Array = np.full(vocab_size, -1, dtype=np.int64)
        self._places[vocabulary] = np.arange(len(vocabulary))

    def __call__(self, pieces: Sequence[Piece]) -> Batch:
        """The batch of these pieces."""
        parts = [self._part(piece) for piece in pieces]
        starts = np.cumsum([0, *(piece.entries for piece in pieces)])
        guessing = [
            np.arange(start + piece.entries - piece.answers, start + piece.entries)
            for piece, start in zip(pieces, starts, strict=False)
        ]
        joined = {
            name: torch.cat([part[name] for part in parts], dim=int(name in _BY_STEP))
            for name in parts[0]
        }
        return Batch(
            rectangles=tuple(self._rectangles(pieces)),
            guessing=torch.from_numpy(np.concatenate(guessing)),
            **joined,
        )

    def _rectangles(self, pieces: Sequence[Piece]) -> Iterator[Rectangle]:
        entry = guess = 0
        for start in range(0, len(pieces), self._abreast):
            spans = [(each.entries, each.answers) for each in pieces[start:][: self._abreast]]
            yield rectangle(spans, entry, guess)
            entry, guess = entry + sum(n for n, _ in spans), guess + sum(n for _, n in spans)

    def _part(self, piece: Piece) -> dict[str, torch.Tensor]:
        record = self._records[piece.record]
        tokens = record.tokens.astype(np.int64)
        entries = np.arange(piece.first, piece.first + piece.entries)
        ahead = entries[-piece.answers :] + 1 + np.arange(self._steps)[:, None]  # [S, A]
        last = len(tokens) - 1
        counts = ahead < last
        following = np.minimum(ahead + 1, last)
        rows = following - record.begin
        logits = record.logits[rows]
        shares = np.exp(logits - logits.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        ids = self._places[record.ids[rows]]
        shares[(ids < 0) | ~counts[..., None]] = 0
        made = {
            "tokens": tokens[entries + 1],
            "positions": np.arange(piece.entries),
            "read": tokens[np.minimum(ahead, last)],
            "wanted": np.where(counts, self._places[tokens[following]], -1),
            "counts": counts,
            "ids": np.maximum(ids, 0),
            "shares": shares,
        }
        states = record.states[piece.first : piece.first + piece.entries]
        return {name: torch.from_numpy(values) for name, values in made.items()} | {
            "states": states
        }


def batches_of(
    collate: Collator, groups: Sequence[Sequence[Piece]], device: str
) -> Iterator[Batch]:
    """One after the other; for a GPU, which learns faster than one process reads, by several."""
    if device == "cpu":
        yield from map(collate, groups)
        return
    workers = min(os.cpu_count() or 1, _READERS)
    loader: DataLoader[Batch] = DataLoader(
        _Batches(collate, groups),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="fork",
    )
    for batch in loader:
        yield batch.to(device)


class _Batches(Dataset[Batch]):
    def __init__(self, collate: Collator, groups: Sequence[Sequence[Piece]]) -> None:
        self._collate, self._groups = collate, groups

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> Batch:
        return self._collate(self._groups[index])
