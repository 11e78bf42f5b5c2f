"""A drafter that fails is switched off, counted and logged once, and the text goes on unchanged."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import (
    BatchDecoder,
    Drafter,
    DrafterError,
    Proposal,
    SamplingParams,
    SpeculativeDecoder,
)
from specplug.drafters import ModelDrafter
from specplug.engines.fake import FakeEngine
from specplug.engines.faulty import Faults, FaultyEngine, PanicException
from specplug.types import EngineError, Outcome, Request
from tests_support.batching import drain, ids
from tests_support.languages import language
from tests_support.serving import serving

VOCAB = 6
METHODS = ("propose", "observe", "commit", "reset", "finish")
ERRORS = (ValueError, KeyError, MemoryError, EngineError, PanicException)
PROMPT = [1, 2, 1, 2]


class Failing(Drafter):
    """Repeats the last token; raises in one of its methods, the n-th time that is called."""

    name = "failing"

    def __init__(self, what: str, error: type[BaseException], after: int = 0) -> None:
        self.what, self.error, self.after = what, error, after
        self.calls: list[str] = []

    def _called(self, what: str) -> None:
        self.calls.append(what)
        if what == self.what and self.calls.count(what) > self.after:
            raise self.error("secret")

    def propose(self, context: Any, budget: Any) -> Proposal:
        self._called("propose")
        return Proposal((int(context[-1]),))

    def observe(self, past: int, tokens: Any, scores: Any) -> None:
        self._called("observe")

    def commit(self, outcome: Outcome) -> None:
        self._called("commit")

    def reset(self, request: Request) -> None:
        self._called("reset")

    def finish(self, request: Request, tokens: Any) -> None:
        self._called("finish")

    def fork(self) -> Failing:
        return Failing(self.what, self.error, self.after)


def engine(rows: int = 1, seed: int = 1, trees: bool = False) -> FakeEngine:
    row = language(seed, vocab_size=VOCAB)
    return FakeEngine(row, vocab_size=VOCAB, max_batch=rows, trees=trees)


def plain(**options: Any) -> tuple[int, ...]:
    return SpeculativeDecoder(engine()).generate(PROMPT, **options).token_ids


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("what", METHODS)
def test_the_text_goes_on(what: str, error: type[BaseException], caplog: Any) -> None:
    right = plain(max_tokens=12)
    drafter = Failing(what, error, after=1)
    decoder = SpeculativeDecoder(engine(), drafter=drafter, draft_tokens=2, broken_drafter="plain")
    with caplog.at_level(logging.WARNING):
        for number in range(4):
            before = len(drafter.calls)
            made = decoder.generate(PROMPT, max_tokens=12)
            assert made.token_ids == right
            if number and what != "finish":  # nothing more is asked of it
                calls = drafter.calls[before:]
                assert calls[calls.index(what) + 1 :] == ["finish"]
    assert decoder.drafter_failures == 3 + (what in ("propose", "observe", "commit"))
    assert made.stats.drafter_failures == 1
    (told,) = [one for one in caplog.records if "the drafter failed" in one.message]
    assert what in told.message
    assert "failing" in told.message or error is EngineError


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("what", METHODS)
def test_who_writes_a_drafter_is_told(what: str, error: type[BaseException]) -> None:
    decoder = SpeculativeDecoder(engine(), drafter=Failing(what, error), draft_tokens=2)
    expected = EngineError if error is EngineError else DrafterError
    with pytest.raises(expected, match="secret"):
        decoder.generate(PROMPT, max_tokens=12)


@pytest.mark.parametrize("how", ["raise", "plain"])
@pytest.mark.parametrize("what", METHODS)
def test_in_a_batch(what: str, how: Any) -> None:
    """Nobody else's answer is concerned; every row and every fork is free again."""
    batch = BatchDecoder(
        engine(2), drafter=Failing(what, KeyError, 1), draft_tokens=2, broken_drafter=how
    )
    for _ in range(3):
        asked = [
            batch.submit(PROMPT, max_tokens=12, speculation=speculation)
            for speculation in (True, False, True)
        ]
        found = drain(batch)
        for generation in asked:
            made = tuple(ids(found[generation]))
            if how == "plain" or generation is asked[1]:
                assert generation.error is None
            if generation.error is None:
                assert made == plain(max_tokens=12)
            else:
                assert isinstance(generation.error, DrafterError)
                assert made == plain(max_tokens=12)[: len(made)]
        assert len(batch._free) == 2
    assert (batch.drafter_failures > 0) == (how == "plain")


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 1000),
    sampling=st.sampled_from(
        [SamplingParams(), *(SamplingParams(temperature=1.0, seed=s) for s in range(3))]
    ),
    chances=st.sampled_from([0.05, 0.3, 1.0]),
    name=st.sampled_from(["forward", "scores", "no_numbers"]),
    rows=st.integers(1, 3),
)
def test_a_draft_model_whose_engine_fails(
    seed: int, sampling: SamplingParams, chances: float, name: str, rows: int
) -> None:
    right = SpeculativeDecoder(engine(seed=seed)).generate(PROMPT, sampling=sampling, max_tokens=9)
    draft = FaultyEngine(engine(rows, seed + 1), Faults(**{name: chances}), seed)
    batch = BatchDecoder(
        engine(rows, seed),
        drafter=ModelDrafter(draft),
        draft_tokens=3,
        broken_drafter="plain",
    )
    asked = [batch.submit(PROMPT, sampling=sampling, max_tokens=9) for _ in range(rows)]
    found = drain(batch)
    assert all(tuple(ids(found[one])) == right.token_ids for one in asked)
    if chances == 1.0:
        assert batch.drafter_failures == rows


@pytest.mark.parametrize("rows", [1, 2])
def test_a_draft_model_that_recovers_drafts_again(rows: int) -> None:
    """NaN that is left in its cache would make all its later scores NaN."""
    draft = FaultyEngine(engine(rows), Faults(no_numbers=1.0))
    batch = BatchDecoder(
        engine(rows), drafter=ModelDrafter(draft), draft_tokens=3, broken_drafter="plain"
    )
    for faults in (Faults(no_numbers=1.0), Faults(), Faults(forward=1.0), Faults()):
        draft.faults = faults
        asked = [batch.submit(PROMPT, max_tokens=9) for _ in range(rows)]
        drain(batch)
        for one in asked:
            assert bool(one.stats.drafter_failures) == (faults != Faults())
            assert bool(one.stats.accepted) == (faults == Faults())


def test_scores_of_a_draft_that_are_not_numbers_are_the_drafters_fault() -> None:
    draft = FaultyEngine(engine(), Faults(no_numbers=1.0))
    decoder = SpeculativeDecoder(engine(), drafter=ModelDrafter(draft), draft_tokens=3)
    with pytest.raises(DrafterError, match=r"'draft' failed in propose: .*not numbers"):
        decoder.generate(PROMPT)


def test_a_bundles_decoder_goes_on(tiny_bundle: Path) -> None:
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="ngram", draft_tokens=4) as decoder:
        right = decoder.generate("one two one two", max_tokens=9).token_ids
        decoder.drafter = Failing("propose", ZeroDivisionError)
        assert decoder.generate("one two one two", max_tokens=9).token_ids == right
        assert decoder.drafter_failures == 1


def test_the_server_goes_on_and_counts(tiny_bundle: Path) -> None:
    """Also with a drafter of one's own, whose failures are raised elsewhere."""
    with BatchDecoder.from_bundle(tiny_bundle, drafter="none", max_batch=2) as opened:
        batch = BatchDecoder(
            opened.target,
            tokenizer=opened.tokenizer,
            drafter=Failing("propose", ZeroDivisionError),
            draft_tokens=3,
        )
        body = {"prompt": "one two", "max_tokens": 9, "temperature": 0}
        answers = []
        for speculation in (False, True):
            with serving(batch) as server:
                asked = body | {"speculation": speculation}
                status, _, answer = server.send("POST", "/v1/completions", asked)
                assert status == 200, answer
                answers.append(answer[answer.index(b'"choices"') :].split(b"usage")[0])
                server.wait_until_free()
                assert server.metric("drafter_failures_total") == speculation
                assert b"secret" not in answer
        assert answers[0] == answers[1]


def test_only_two_ways() -> None:
    with pytest.raises(ValueError, match="broken_drafter"):
        SpeculativeDecoder(engine(), broken_drafter="ignore")  # type: ignore[arg-type]
