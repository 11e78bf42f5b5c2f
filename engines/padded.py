"""Engines whose rows depend on the width of a call, called only at widths where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from specplug.engines.host import check_step
from specplug.types import (
    BatchEngine,
    EngineError,
    Float32Array,
    Int64Array,
    Scores,
    Step,
    TreeEngine,
)
from specplug.widths import WIDEST, rows_of


class _Engine(TreeEngine, BatchEngine, Protocol):
    """What the adapters that need padding are."""


class PaddedEngine:
    """Pads the calls of another engine to multiples of a width, measured here and now.

    Libraries of matrix products choose a kernel by the shape, so a token's scores may differ in
    the last bits between calls of 3 and of 4 tokens, and be the same in those of 4, 8 and 12.

    Args:
        engine: takes calls of every width; closed with this one.

    Raises:
        EngineError: rows depend on the width of the call, whatever it is padded to.
    """

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        # What padding may need stays free.
        self.spec = replace(engine.spec, max_length=engine.spec.max_length - (WIDEST - 1))
        self._multiple = 1
        self._multiple = self._measure()

    def _measure(self) -> int:
        """The smallest width whose multiples, up to twice the widest, give the same rows."""
        random = np.random.default_rng(0)
        tokens = random.integers(0, self.spec.vocab_size, size=3 * WIDEST)[: self.spec.max_length]
        past = max(len(tokens) - 2 * WIDEST, 0)
        sample = tokens[past:]

        def in_pieces(width: int) -> Float32Array:
            starts = range(0, len(sample) - width + 1, width)
            return np.concatenate([rows_of(self, sample[s : s + width], past + s) for s in starts])

        if past:
            rows_of(self, tokens[:past], 0)
        expected = in_pieces(WIDEST)
        for multiple in (1, 2, 4, 8, WIDEST):
            found = map(in_pieces, range(multiple, len(sample) + 1, multiple))
            if all(np.array_equal(rows[: len(expected)], expected[: len(rows)]) for rows in found):
                return multiple
        raise EngineError(
            f"on {self.spec.device} rows of {self.spec.name} depend on the width of the call, even "
            f"of {WIDEST} and {2 * WIDEST} tokens: text would change under speculation"
        )

    def forward(self, step: Step) -> Scores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        check_step(self.spec, step)
        width = step.tokens.shape[1]
        first = step.scores_from // self._multiple * self._multiple
        more = -width % self._multiple
        if not more and first == step.scores_from:
            return self._engine.forward(step)
        parents = step.parents
        if parents is not None:
            parents = np.pad(parents, (0, more), constant_values=-1)
        tokens = np.pad(step.tokens, ((0, 0), (0, more)))
        padded = replace(step, tokens=tokens, parents=parents, scores_from=first)
        scores = self._engine.forward(padded)
        return _Some(scores, slice(step.scores_from - first, width - first), width)

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        self._engine.keep(row, past, nodes)

    def save(self, row: int, start: int, stop: int) -> Any:
        """A copy of a row's entries; see :class:`specplug.types.BatchEngine`."""
        return self._engine.save(row, start, stop)

    def load(self, row: int, start: int, entries: Any) -> None:
        """Write entries into a row; see :class:`specplug.types.BatchEngine`."""
        self._engine.load(row, start, entries)

    def close(self) -> None:
        """Close the engine."""
        self._engine.close()


class _Some:
    """Scores without those of padding."""

    def __init__(self, scores: Scores, wanted: slice, width: int) -> None:
        self._scores, self._wanted, self._width = scores, wanted, width

    def argmax(self) -> Int64Array:
        return self._scores.argmax()[:, self._wanted]

    def logits(self) -> Float32Array:
        return self._scores.logits()[:, self._wanted]

    def hidden(self, name: str) -> Float32Array:
        return self._scores.hidden(name)[:, : self._width]
