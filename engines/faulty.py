"""An engine that fails on purpose, for tests of what is built upon engines, yours too.

    engine = FaultyEngine(FakeEngine(...), Faults(forward=0.1, no_numbers=0.05), seed=7)

Whatever it wraps, it fails in every way that a backend can: see :class:`Faults`. What it draws is
determined by the seed and by the order of the calls.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from specplug.arguments import check_ranges, check_types, checked
from specplug.engines.host import best_tokens
from specplug.types import (
    BatchEngine,
    Engine,
    EngineError,
    EngineSpec,
    Float32Array,
    Int64Array,
    Scores,
    Step,
    TreeEngine,
)


class PanicException(BaseException):
    """Stands for a panic of a library in Rust: like pyo3's, it is no :class:`Exception`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """How often what goes wrong; each a chance in [0, 1] a call."""

    forward: float = 0.0
    """A call raises, half of the time after entries of other tokens were written in its place."""
    scores: float = 0.0
    """A call succeeds, and reading its scores raises, as with errors of a GPU that come late."""
    no_numbers: float = 0.0
    """Scores are not numbers: NaN, some NaN, infinity or minus infinity, from some position on, in
    some rows; and so are all later ones of these rows until they are cleared, as where attention
    multiplies NaN that is left in the cache by 0."""
    save: float = 0.0
    """Copying cache entries raises."""
    load: float = 0.0
    """Writing cache entries raises, half of the time after wrong ones were written."""
    keep: float = 0.0
    """Moving a tree's path together raises, half of the time after a wrong one was moved."""
    clear: float = 0.0
    """Clearing cache entries raises."""
    delay: float = 0.0
    """A call takes ``delay_seconds`` longer."""
    delay_seconds: float = 0.01

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(
            self,
            [
                *((name, "in [0, 1]", 0 <= getattr(self, name) <= 1) for name in _CHANCES),
                ("delay_seconds", "0 or more", self.delay_seconds >= 0),
            ],
        )


_CHANCES = ("forward", "scores", "no_numbers", "save", "load", "keep", "clear", "delay")

_ERRORS: tuple[tuple[type[BaseException], str], ...] = (
    (EngineError, "the backend failed"),
    (RuntimeError, "CUDA out of memory. Tried to allocate 2.00 GiB."),
    (MemoryError, "no memory"),
    (OSError, "input/output error"),
    (KeyError, "a missing key"),
    (AssertionError, ""),
    (PanicException, "called `Option::unwrap()` on a `None` value"),
)
"""Kinds of exceptions, one of which every failure is."""


class FaultyEngine:
    """Wraps an engine, and fails at random.

    Args:
        engine: does the work; closed with this one.
        faults: how often what goes wrong; the attribute may be set at any time, such as to
            ``Faults()`` for no more faults.
        seed: of what is drawn.

    ``counts`` says how often each kind of fault was made, by the names of :class:`Faults`.
    ``forward`` raises anything, not only :class:`EngineError`, so that what calls it is tested
    against engines that break the contract.
    """

    @checked()
    def __init__(self, engine: Engine, faults: Faults, seed: int = 0) -> None:
        self.engine = engine
        self.faults = faults
        self.counts: Counter[str] = Counter()
        self._poisoned: set[int] = set()
        self._random = random.Random(seed)
        # Only what the engine has: callers ask by isinstance what it can do.
        if isinstance(engine, BatchEngine):
            self.save, self.load = self._save, self._load
        if isinstance(engine, TreeEngine):
            self.keep = self._keep
        if hasattr(engine, "clear"):
            self.clear = self._clear

    @property
    def spec(self) -> EngineSpec:
        """That of the engine."""
        return self.engine.spec

    def forward(self, step: Step) -> Scores:
        """Run the model over ``step``, or fail."""
        if self._draws("delay"):
            time.sleep(self.faults.delay_seconds)
        if self._draws("forward"):
            if self._half():
                self._poison(step, range(len(step.tokens)))
                vocab_size = self.spec.input_vocab_size or self.spec.vocab_size
                self.engine.forward(replace(step, tokens=(step.tokens + 1) % vocab_size))
            raise self._error()
        scores = self.engine.forward(step)
        if self._draws("scores"):
            return _Unreadable(self._error())
        if self._draws("no_numbers"):
            return self._no_numbers(step, scores)
        poisoned = [n for n in range(len(step.tokens)) if step.first_row + n in self._poisoned]
        if poisoned:
            logits = scores.logits().copy()
            logits[poisoned] = np.nan
            return _Spoilt(logits, scores)
        return scores

    def close(self) -> None:
        """Close the engine."""
        self.engine.close()

    def _save(self, row: int, start: int, stop: int) -> Any:
        if self._draws("save"):
            raise self._error()
        return cast(BatchEngine, self.engine).save(row, start, stop)

    def _load(self, row: int, start: int, entries: Any) -> None:
        engine = cast(BatchEngine, self.engine)
        if self._draws("load"):
            if self._half():
                engine.load(row, start, entries[..., ::-1] if entries.ndim == 1 else entries * 0)
            raise self._error()
        engine.load(row, start, entries)

    def _keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        engine = cast(TreeEngine, self.engine)
        if self._draws("keep"):
            if self._half():
                engine.keep(row, past, nodes[::-1])
            raise self._error()
        engine.keep(row, past, nodes)

    def _clear(self, row: int, start: int) -> None:
        if self._draws("clear"):
            raise self._error()
        cast(Any, self.engine).clear(row, start)
        self._poisoned.discard(row)

    def _poison(self, step: Step, rows: Iterable[int]) -> None:
        if hasattr(self, "clear"):
            self._poisoned.update(step.first_row + row for row in rows)

    # --- what is drawn ------------------------------------------------------------------------

    def _draws(self, name: str) -> bool:
        drawn: bool = self._random.random() < getattr(self.faults, name)
        self.counts[name] += drawn
        return drawn

    def _half(self) -> bool:
        return self._random.random() < 0.5

    def _error(self) -> BaseException:
        kind, message = self._random.choice(_ERRORS)
        return kind(message)

    def _no_numbers(self, step: Step, scores: Scores) -> Scores:
        """Scores that are not numbers from some position on, in at least one row."""
        logits = scores.logits().copy()
        batch, positions, vocab_size = logits.shape
        certain = self._random.randrange(batch)
        for row in range(batch):
            if row != certain and self._half():
                continue
            self._poison(step, [row])
            spoilt = logits[row, self._random.randrange(positions) :]
            kind = self._random.choice(("all", "some", "infinity", "nothing"))
            token = self._random.randrange(vocab_size)
            if kind == "all":
                spoilt[:] = np.nan
            elif kind == "nothing":
                spoilt[:] = -np.inf
            else:
                spoilt[:, token] = np.nan if kind == "some" else np.inf
        return _Spoilt(logits, scores)


class _Spoilt:
    """Scores with other logits; see :class:`specplug.types.Scores`."""

    def __init__(self, logits: Float32Array, scores: Scores) -> None:
        self._logits, self._scores = logits, scores
        logits.flags.writeable = False

    def argmax(self) -> Int64Array:
        return best_tokens(self._logits)

    def logits(self) -> Float32Array:
        return self._logits

    def hidden(self, name: str) -> Float32Array:
        return self._scores.hidden(name)


class _Unreadable:
    """Scores that raise when they are read; see :class:`specplug.types.Scores`."""

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def argmax(self) -> Int64Array:
        raise self._error

    def logits(self) -> Float32Array:
        raise self._error

    def hidden(self, name: str) -> Float32Array:
        raise self._error
