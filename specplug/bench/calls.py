"""Cost of a call by width and batch, and of a prompt: engines alone, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from specplug.bench.subjects import Subject
from specplug.feeding import feed
from specplug.types import Engine, Int64Array, Step

PAST = 256
PROMPT = 512
CALLS = 10  # of a shape, a round
_WARM_UP = 2
SETTLE = 0.05
"""Seconds until the threads of the engine that ran before have stopped to spin."""


@dataclass(frozen=True, slots=True)
class CallCost:
    """Seconds of the calls of one shape, the rounds in turn with those of all others."""

    subject: Subject
    batch: int
    width: int
    seconds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class PrefillCost:
    """Seconds of a prompt of so many tokens."""

    subject: Subject
    tokens: int
    seconds: tuple[float, ...]


def measure_calls(
    engines: Mapping[Subject, Engine],
    widths: Sequence[int],
    batches: Sequence[int],
    repeats: int,
    advance: Callable[[], None],
) -> list[CallCost]:
    """The verification curve of every engine: calls over a filled cache, best tokens fetched.

    Args:
        engines: by subject.
        widths: tokens a row; calls narrower than ``min_width`` are padded to it, as the loop's.
        batches: rows; engines that take fewer are left out.
        repeats: rounds, of ten calls of every shape.
        advance: called after every round.
    """
    seconds: dict[tuple[Subject, int, int], list[float]] = {}
    for _ in range(repeats):
        for subject, engine in engines.items():
            # Not call by call: threads of the engine before spin on for a while.
            time.sleep(SETTLE)
            _fill_cache(engine)
            for batch in batches:
                for width in widths:
                    if batch <= engine.spec.max_batch and width < engine.spec.max_length // 2:
                        found = seconds.setdefault((subject, batch, width), [])
                        found += _time_calls(engine, batch, width)
        advance()
    return [CallCost(*shape, tuple(found)) for shape, found in seconds.items()]


def _fill_cache(engine: Engine) -> None:
    rows = np.repeat(_tokens(engine)[None, : _past(engine)], engine.spec.max_batch, axis=0)
    past = np.zeros(len(rows), dtype=np.int64)
    engine.forward(Step(tokens=rows, past=past, scores_from=rows.shape[1] - 1)).argmax()


def _time_calls(engine: Engine, batch: int, width: int) -> list[float]:
    padded = max(width, engine.spec.min_width)
    tokens = np.repeat(_tokens(engine)[None, :padded], batch, axis=0)
    step = Step(tokens=tokens, past=np.full(batch, _past(engine)))
    seconds = []
    for _ in range(_WARM_UP + CALLS):
        started = time.perf_counter()
        engine.forward(step).argmax()
        seconds.append(time.perf_counter() - started)
    return seconds[_WARM_UP:]


def measure_prefill(
    engines: Mapping[Subject, Engine], repeats: int, advance: Callable[[], None]
) -> list[PrefillCost]:
    """Time to a long prompt's first token, fed as the loop feeds it."""
    seconds: dict[Subject, list[float]] = {subject: [] for subject in engines}
    prompts = {
        subject: _tokens(engine)[: min(PROMPT, engine.spec.context_limit - 1)]
        for subject, engine in engines.items()
    }
    for _ in range(repeats + 1):
        for subject, engine in engines.items():
            time.sleep(SETTLE)
            started = time.perf_counter()
            feed(engine, prompts[subject].tolist(), past=0, scored=1).argmax()
            seconds[subject].append(time.perf_counter() - started)
        advance()
    return [PrefillCost(s, len(prompts[s]), tuple(found[1:])) for s, found in seconds.items()]


def _tokens(engine: Engine) -> Int64Array:
    random = np.random.default_rng(0)
    found: Int64Array = random.integers(0, engine.spec.vocab_size, size=PROMPT)
    return found


def _past(engine: Engine) -> int:
    return min(PAST, engine.spec.max_length // 2)
