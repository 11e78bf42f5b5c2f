"""The cache of the PyTorch engines: slots on any device that a call names, and that grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import transformers

FIRST_CAPACITY = 512  # cache entries; doubled when outgrown


class Slots(transformers.Cache):  # type: ignore[misc]
    """Keys and values [B, heads, capacity, size] a layer, written where a call says."""

    slots: torch.Tensor
    """Where the running call's entries go, i64[B, T]."""
    first_row = 0
    """The row of the running call's first."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self._rows_held, self.capacity = rows, capacity
        self._entries: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def make_room(self, end: int) -> None:
        """Grow, by doubling, to hold entries up to ``end``."""
        old = capacity = self.capacity
        if end <= old:
            return
        while capacity < end:
            capacity *= 2
        grown = {layer: self._new(pair, capacity) for layer, pair in self._entries.items()}
        for layer, pair in self._entries.items():
            for new, entries in zip(grown[layer], pair, strict=True):
                new[:, :, :old] = entries
        self._entries, self.capacity = grown, capacity  # only now: memory may not suffice

    def _new(
        self, pair: tuple[torch.Tensor, torch.Tensor], capacity: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Zeros, not garbage: attention multiplies spare entries by 0, and 0 * NaN is NaN.
        first, second = (
            part.new_zeros(self._rows_held, part.shape[1], capacity, part.shape[3]) for part in pair
        )
        return first, second

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new entries, and give all that its attention may see."""
        pair = key_states, value_states
        if layer_idx not in self._entries:
            self._entries[layer_idx] = self._new(pair, self.capacity)
        entries = self._entries[layer_idx]
        batch = len(self.slots)
        rows = slice(self.first_row, self.first_row + batch)
        row = torch.arange(rows.start, rows.stop, device=self.slots.device)[:, None]
        for held, new in zip(entries, pair, strict=True):
            held[row, :, self.slots] = new.transpose(1, 2)
        return entries[0][rows], entries[1][rows]

    def before(
        self, layer_idx: int, rows: slice, stop: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """A layer's entries before ``stop`` of some rows; None: it has none yet."""
        if layer_idx not in self._entries:
            return None
        keys, values = (entries[rows, :, :stop] for entries in self._entries[layer_idx])
        return keys, values

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given: transformers' count of them is not used."""
        return 0

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries from ``start`` on what they were at first."""
        for pair in self._entries.values():
            for entries in pair:
                entries[row, :, start:] = 0

    def save(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of a row's entries, [2 * layers, heads, stop - start, size]."""
        parts = [part for layer in sorted(self._entries) for part in self._entries[layer]]
        return torch.stack([part[row, :, start:stop] for part in parts])

    def load(self, row: int, start: int, saved: torch.Tensor) -> None:
        """Write such a copy into a row."""
        end = start + saved.shape[2]
        self.make_room(end)
        parts = [part for layer in sorted(self._entries) for part in self._entries[layer]]
        for part, values in zip(parts, saved, strict=True):
            part[row, :, start:end] = values

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move entries of a row together."""
        chosen = [past + node for node in nodes]
        for pair in self._entries.values():
            for entries in pair:
                entries[row, :, past : past + len(nodes)] = entries[row, :, chosen]
