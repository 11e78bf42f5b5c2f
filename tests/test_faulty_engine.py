"""The engine that fails on purpose: it does as it says, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specplug.engines.contract import EngineContract, Make
from specplug.engines.fake import FakeEngine
from specplug.engines.faulty import Faults, FaultyEngine
from specplug.types import NO_TOKEN, BatchEngine, Step, TreeEngine
from tests_support.languages import language

VOCAB = 260
CALLS = 400


def fake(max_batch: int = 1) -> FakeEngine:
    row = language(1, order=8, vocab_size=VOCAB)
    return FakeEngine(row, vocab_size=VOCAB, max_length=400, max_batch=max_batch, trees=True)


class TestWithoutFaults(EngineContract):
    @pytest.fixture
    def make(self) -> Make:
        return lambda max_batch=1: FaultyEngine(fake(max_batch), Faults())


def step(past: int = 0) -> Step:
    return Step(tokens=np.array([[1, 2, 3]]), past=np.array([past]))


def history(seed: int) -> list[str]:
    engine = FaultyEngine(fake(), Faults(forward=0.3, scores=0.2, no_numbers=0.2), seed)
    made = []
    for _ in range(CALLS):
        try:
            made.append(str(engine.forward(step()).argmax().tolist()))
        except BaseException as error:
            made.append(repr(error))
    return made


def test_the_seed_determines_what_fails() -> None:
    assert history(1) == history(1) != history(2)


@pytest.mark.parametrize("name", ["forward", "scores", "no_numbers", "save", "load", "keep"])
def test_what_is_asked_for_fails_as_often_as_asked(name: str) -> None:
    engine = FaultyEngine(fake(2), Faults(**{name: 0.25}), seed=3)
    calls: dict[str, Any] = {
        "forward": lambda: engine.forward(step()),
        "scores": lambda: engine.forward(step()).logits(),
        "no_numbers": lambda: engine.forward(step()).argmax(),
        "save": lambda: engine.save(0, 0, 3),
        "load": lambda: engine.load(1, 0, np.array([1, 2, 3])),
        "keep": lambda: engine.keep(0, 0, [0, 1, 2]),
    }
    calls["forward"]() if name not in ("forward", "scores") else engine.engine.forward(step())
    engine.counts.clear()
    failed, kinds = 0, set()
    for _ in range(CALLS):
        if name in ("forward", "no_numbers"):
            engine.clear(0, 0)  # else all that follow are not numbers, either
        try:
            found = calls[name]()
            failed += name == "no_numbers" and NO_TOKEN in found
        except BaseException as error:
            failed += 1
            kinds.add(type(error).__name__)
    assert failed == engine.counts[name] == sum(engine.counts.values())
    assert 0.25 * CALLS / 2 < failed < 0.25 * CALLS * 2
    assert name == "no_numbers" or len(kinds) == 7
    engine.clear(0, 0)
    engine.engine.forward(step())
    for other, call in calls.items():
        if other != name and not {other, name} <= {"forward", "scores", "no_numbers"}:
            call()  # does not fail


def test_what_is_not_numbers_stays_so_until_it_is_cleared() -> None:
    engine = FaultyEngine(fake(), Faults(no_numbers=1.0))
    engine.forward(step())
    engine.faults = Faults()
    for _ in range(3):
        assert (engine.forward(step()).argmax() == NO_TOKEN).all()
    engine.clear(0, 0)
    assert (engine.forward(step()).argmax() >= 0).all()


def test_it_has_what_its_engine_has() -> None:
    class Bare:
        spec = fake().spec

        def forward(self, step: Step) -> Any: ...

        def close(self) -> None: ...

    assert not isinstance(FaultyEngine(Bare(), Faults()), BatchEngine | TreeEngine)
    assert isinstance(FaultyEngine(fake(), Faults()), BatchEngine)
    assert isinstance(FaultyEngine(fake(), Faults()), TreeEngine)


def test_a_chance_is_a_chance() -> None:
    with pytest.raises(ValueError, match=r"forward.*in \[0, 1\]"):
        Faults(forward=1.5)
