"""Random faults of the engine: every answer is right, or failed by name, and others go on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import NgramDrafter, SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.drafters import ModelDrafter
from specplug.engines.fake import FakeEngine
from specplug.engines.faulty import Faults, FaultyEngine
from specplug.history import History
from specplug.opening import make_drafter
from specplug.prefixes import PIECE
from specplug.types import Drafter, EngineError
from tests_support.batching import drain, ids
from tests_support.languages import language

VOCAB = 6
SHARED = [n % VOCAB for n in range(PIECE)]
RANDOM = SamplingParams(temperature=1.0, seed=3)


@st.composite
def faults(draw: Any) -> Faults:
    chances = st.sampled_from([0.0, 0.0, 0.02, 0.1, 0.5])
    names = ("forward", "scores", "no_numbers", "save", "load", "keep", "clear")
    return Faults(**{name: draw(chances) for name in names})


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    tail = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=6))
    asked: dict[str, Any] = {"max_tokens": draw(st.integers(1, 12))}
    asked["sampling"] = draw(st.sampled_from([SamplingParams(), RANDOM]))
    if draw(st.booleans()):
        asked["logprobs"] = 1
    return {"prompt": [*draw(st.sampled_from([[], SHARED])), *tail], **asked}


def drafter_of(name: str, row: Any, rows: int) -> Drafter:
    if name == "auto":
        return make_drafter("auto", history=History())  # branches
    return ModelDrafter(FakeEngine(row, vocab_size=VOCAB, max_batch=rows))


@settings(deadline=None, max_examples=120)
@given(
    asked=st.lists(requests(), min_size=1, max_size=7),
    faults=faults(),
    seed=st.integers(0, 1000),
    rows=st.integers(1, 4),
    trees=st.booleans(),
    drafter=st.sampled_from(["auto", "draft"]),
)
def test_in_a_batch(
    asked: list[dict[str, Any]], faults: Faults, seed: int, rows: int, trees: bool, drafter: str
) -> None:
    row = language(seed, vocab_size=VOCAB)
    alone = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB))
    right = [list(alone.generate(**one).token_ids) for one in asked]
    target = FakeEngine(row, vocab_size=VOCAB, max_batch=rows, trees=trees)
    engine = FaultyEngine(target, faults, seed)
    batch = BatchDecoder(engine, drafter=drafter_of(drafter, row, rows), draft_tokens=4)
    for number in range(3):
        if number == 2:
            engine.faults = Faults()
        generations = [batch.submit(**one) for one in asked]
        found = drain(batch)
        for generation, expected in zip(generations, right, strict=True):
            made = ids(found[generation])
            if generation.error is None:
                assert (made, generation.finish_reason) == (expected, "length")
            else:
                assert engine.faults != Faults()
                assert generation.finish_reason == "error"
                assert isinstance(generation.error, EngineError)
                assert made == expected[: len(made)]
        assert len(batch._free) == rows
        assert not batch._drafters
        assert batch.idle
    assert batch.failures == 0  # all of the last ones were completed


@settings(deadline=None, max_examples=60)
@given(asked=requests(), faults=faults(), seed=st.integers(0, 1000), trees=st.booleans())
def test_alone(asked: dict[str, Any], faults: Faults, seed: int, trees: bool) -> None:
    row = language(seed, vocab_size=VOCAB)
    right = list(SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB)).generate(**asked).token_ids)
    engine = FaultyEngine(FakeEngine(row, vocab_size=VOCAB, trees=trees), faults, seed)
    decoder = SpeculativeDecoder(engine, drafter=drafter_of("auto", row, 1), draft_tokens=4)
    for number in range(4):
        if number == 3:
            engine.faults = Faults()
        found: list[int] = []
        try:
            for token in decoder.stream(**asked):
                found.append(token.id)
            assert found == right
        except EngineError:
            assert number < 3
            assert found == right[: len(found)]


def test_a_failed_measurement_drafts_nothing() -> None:
    """What calls cost is unknown, and the text is the same."""
    row = language(1, vocab_size=VOCAB)
    engine = FaultyEngine(FakeEngine(row, vocab_size=VOCAB, max_batch=2), Faults(forward=1.0))
    batch = BatchDecoder(engine, drafter=NgramDrafter())
    batch.prepare()
    assert batch.failures == 1
    engine.faults = Faults()
    generation = batch.submit([1, 2, 1, 2, 1], max_tokens=9)
    made = ids(drain(batch)[generation])
    alone = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB))
    assert made == list(alone.generate([1, 2, 1, 2, 1], max_tokens=9).token_ids)
    assert generation.stats.drafted == 0


@pytest.mark.parametrize("name", ["save", "load"])
def test_prefixes_that_cannot_be_copied_are_read(name: str) -> None:
    """No answer fails for them."""
    row = language(1, vocab_size=VOCAB)
    engine = FaultyEngine(FakeEngine(row, vocab_size=VOCAB), Faults(**{name: 1.0}))
    batch = BatchDecoder(engine)
    for _ in range(3):
        generation = batch.submit([*SHARED, 1], max_tokens=3)
        drain(batch)
        assert generation.error is None
        assert generation.cached_tokens == 0
    assert engine.counts[name] > 0
