"""The cache of ONNX Runtime's engines: one block of host memory that grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.types import EngineError

if TYPE_CHECKING:
    from specplug.bundle import CacheLayout

FIRST_CAPACITY = 512  # entries; doubled when outgrown
SPARE = 1
"""Entries beyond the capacity, for graphs that pad their attention."""

Array = np.ndarray[Any, Any]


class KeyValues:
    """Keys and values of all layers, which a draft of the same model may share.

    Args:
        layout: layers, heads, size and type.
        rows: sequences.
        longest: entries a row can hold.
    """

    def __init__(self, layout: CacheLayout, rows: int, longest: int) -> None:
        self.layout = layout
        self._rows, self.longest = rows, longest
        self.entries = self._new(min(FIRST_CAPACITY, longest))
        """[layers, 2, rows, heads, capacity + SPARE, size]; another array once it has grown."""

    def _new(self, capacity: int) -> Array:
        layout = self.layout
        shape = (layout.layers, 2, self._rows, layout.heads, capacity + SPARE, layout.head_size)
        try:
            # Zeros, not garbage: attention multiplies spare entries by 0, and 0 * NaN is NaN.
            return np.zeros(shape, dtype=layout.dtype)
        except MemoryError as error:
            raise EngineError(f"no memory for a cache of {capacity} tokens") from error

    def make_room(self, length: int) -> None:
        """Grow to hold so many entries a row.

        Raises:
            EngineError: they are more than :attr:`longest`, or there is no memory.
        """
        if length > self.longest:
            raise EngineError(f"{length} entries: the cache holds {self.longest}")
        capacity = self.entries.shape[4] - SPARE
        if length <= capacity:
            return
        while capacity < length:
            capacity *= 2
        grown = self._new(min(capacity, self.longest))
        grown[..., : self.entries.shape[4], :] = self.entries
        self.entries = grown

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move the entries of a tree's accepted path together."""
        entries = self.entries[:, :, row]
        entries[:, :, :, past : past + len(nodes)] = entries[:, :, :, [past + n for n in nodes]]

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries from ``start`` on what they were at first."""
        self.entries[:, :, row, :, start:] = 0

    def save(self, row: int, start: int, stop: int) -> Array:
        """A copy of a row's entries, [layers, 2, heads, stop - start, size]."""
        return self.entries[:, :, row, :, start:stop].copy()

    def load(self, row: int, start: int, entries: Array) -> None:
        """Write such a copy into a row."""
        self.make_room(start + entries.shape[3])
        self.entries[:, :, row, :, start : start + entries.shape[3]] = entries
