"""Engines whose rows depend on the width of a call, called only at widths where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from specplug.engines.host import HostScores, check_step
from specplug.types import (
    BatchEngine,
    ClearableEngine,
    EngineError,
    Float32Array,
    Int64Array,
    Scores,
    Step,
    TreeEngine,
)
from specplug.widths import WIDEST, rows_of


class _Engine(TreeEngine, BatchEngine, ClearableEngine, Protocol):
    """What the adapters that need padding are."""


class PaddedEngine:
    """Pads the calls of another engine to multiples of a width, measured here and now.

    Libraries of matrix products choose a kernel by the shape, so a token's scores may differ in
    the last bits between calls of 3 and of 4 tokens, and be the same in those of 4, 8 and 12.
    Where no multiples will do, as in fp32 on CUDA, every call is made of calls of one row and one
    width.

    Args:
        engine: takes calls of every width; closed with this one.

    Raises:
        EngineError: rows depend on what else is in the call.
    """

    def __init__(self, engine: _Engine) -> None:
        self._engine = engine
        # What padding may need stays free.
        self.spec = replace(engine.spec, max_length=engine.spec.max_length - (WIDEST - 1))
        self._multiple, self._cut = 1, False
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
        self._multiple, self._cut = WIDEST, True
        whole = rows_of(self, sample, past)
        for shift in (1, 3, WIDEST // 2):
            if not np.array_equal(rows_of(self, sample[shift:], past + shift), whole[shift:]):
                raise EngineError(
                    f"on {self.spec.device} rows of {self.spec.name} depend on what else is in the "
                    f"call, even at one width of {WIDEST} tokens: text would change under "
                    "speculation"
                )
        self.spec = replace(self.spec, supports_tree=False, exact_trees=False)  # they may be wider
        return WIDEST

    def forward(self, step: Step) -> Scores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        check_step(self.spec, step)
        return self._in_calls(step) if self._cut else self._padded(step)

    def _in_calls(self, step: Step) -> Scores:
        """The step in calls of one row and the widest width each."""
        batch, width = step.tokens.shape
        logits, hidden = [], []
        for row in range(batch):
            for start in range(0, width, WIDEST):
                piece = step.tokens[row : row + 1, start : start + WIDEST]
                wanted = max(step.scores_from - start, 0)
                scores = self._padded(
                    replace(
                        step,
                        tokens=piece,
                        past=step.past[row : row + 1] + start,
                        first_row=step.first_row + row,
                        scores_from=min(wanted, piece.shape[1] - 1),
                        lengths=None,
                    )
                )
                if wanted < piece.shape[1]:
                    logits.append(scores.logits()[0].copy())
                hidden.append({n: scores.hidden(n)[0].copy() for n in self.spec.hidden})
        return HostScores(
            np.concatenate(logits).reshape(batch, -1, logits[0].shape[-1]),
            {
                name: np.concatenate([part[name] for part in hidden]).reshape(
                    batch, width, hidden[0][name].shape[-1]
                )
                for name in self.spec.hidden
            },
        )

    def _padded(self, step: Step) -> Scores:
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

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries new; see :class:`specplug.types.ClearableEngine`."""
        self._engine.clear(row, start)

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
