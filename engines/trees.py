"""Who sees whom: positions and masks of a step, for graphs that take them as inputs."""

from __future__ import annotations

from typing import Any

import numpy as np

from specplug.types import Int64Array, Step

MASK = "attention_mask"
"""Name of the mask input; ``attention_mask_W`` is that of layers that see W tokens."""
HIDDEN = -np.inf
"""What is added to the product of a query and a key that it does not see."""


def mask_window(name: str) -> int | None:
    """How many tokens the layers see that read a mask of this name; None: all."""
    return None if name == MASK else int(name.rpartition("_")[2])


def depths(step: Step) -> Int64Array:
    """How far each token of a call is from its root, i64[T]: 0, 1, 2, … for a chain."""
    if step.parents is None:
        return np.arange(step.tokens.shape[1])
    found = np.zeros(step.tokens.shape[1], dtype=np.int64)
    for node, parent in enumerate(step.parents.tolist()):
        found[node] = found[parent] + 1 if parent >= 0 else 0
    return found


def positions(step: Step) -> Int64Array:
    """The position of every token in its sequence, i64[B, T]."""
    found: Int64Array = step.past[:, None] + depths(step)
    return found


def fill_mask(mask: np.ndarray[Any, Any], step: Step, window: int | None = None) -> None:
    """Write what is added to the products of a step's queries with the cache's keys.

    A token sees the entries before the call, its ancestors and itself, and in a block those after
    it, too; with a window, those fewer than ``window`` positions before its own. Padding sees
    itself at least, so that no row is without an entry.

    Args:
        mask: f32[B, 1, T, capacity], overwritten.
        step: the call.
        window: how many tokens a layer sees, its own included; None: all.
    """
    width, capacity = mask.shape[2:]
    entries = np.arange(capacity)
    depth = depths(step)
    for row, past in enumerate(step.past.tolist()):
        seen = entries <= past + np.arange(width)[:, None]
        if step.block:
            seen[width - step.block :, past : past + width] = True
        key_positions = entries
        if step.parents is not None:
            seen[:, past : past + width] = _ancestry(step.parents.tolist())
            key_positions = entries.copy()
            key_positions[past : past + width] = past + depth
        if window is not None:
            seen &= key_positions > past + depth[:, None] - window
        mask[row, 0] = np.where(seen, 0, HIDDEN)


def _ancestry(parents: list[int]) -> np.ndarray[Any, Any]:
    """Whether node j is node i or above it, bool[T, T]."""
    above = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above[node] |= above[parent]
    return above
