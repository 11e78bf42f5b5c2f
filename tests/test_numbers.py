"""Scores that are not numbers: the answer fails by name, and never becomes text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from specplug import EngineError, NgramDrafter, SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.drafters import ModelDrafter, NoDrafter
from specplug.engines.fake import FakeEngine
from specplug.engines.host import HostScores
from specplug.sampling import NoNumbersError
from specplug.types import NO_TOKEN
from tests_support.batching import drain, ids
from tests_support.languages import language

VOCAB = 6
BAD = {
    "all NaN": lambda row: row * np.nan,
    "some NaN": lambda row: np.where(np.arange(VOCAB) == 2, np.nan, row),
    "infinity": lambda row: np.where(np.arange(VOCAB) == 3, np.inf, row),
    "minus infinity": lambda row: np.full(VOCAB, -np.inf),
}
WAYS = {
    "greedy": {},
    "shaped greedy": {"sampling": SamplingParams(logit_bias={1: 0.5})},
    "allowed": {"sampling": SamplingParams(allowed_token_ids=[0, 1, 4, 5])},
    "forced": {"sampling": SamplingParams(forced_tokens=dict.fromkeys(range(40), 1))},
    "coupled": {"sampling": SamplingParams(temperature=1.0, seed=1)},
    "top-k": {"sampling": SamplingParams(temperature=1.0, seed=1, top_k=2)},
    "rejection": {"sampling": SamplingParams(temperature=1.0, seed=1, acceptance="rejection")},
    "block": {"sampling": SamplingParams(temperature=1.0, seed=1, acceptance="block")},
    "log-probabilities": {"logprobs": 2},
    "echo": {"echo": True, "logprobs": 1},
}
PROMPT = [1, 2, 3, 1, 2, 3, 1, 2]
NEW = 12


def spoilt(kind: str, *, at: int, order: int = 2) -> Any:
    """A language whose row after ``at`` tokens is not numbers."""
    row = language(3, order=order, vocab_size=VOCAB)
    return lambda prefix: BAD[kind](row(prefix)) if len(prefix) == at else row(prefix)


def drafter(kind: str, row: Any, rows: int = 1) -> Any:
    if kind == "none":
        return NoDrafter()
    if kind == "ngram":
        return NgramDrafter()
    return ModelDrafter(FakeEngine(row, vocab_size=VOCAB, max_batch=rows))


@pytest.mark.parametrize("kind", BAD)
def test_the_best_token_is_none_where_scores_are_not_numbers(kind: str) -> None:
    random = np.random.default_rng(0).normal(size=(2, 3, VOCAB)).astype(np.float32)
    random[:, :, 0] = -np.inf  # what no token has is no fault
    expected = random.argmax(axis=-1)
    assert np.array_equal(HostScores(random).argmax(), expected)
    random[1, 1] = BAD[kind](random[1, 1])
    expected[1, 1] = NO_TOKEN
    found = HostScores(random).argmax()
    assert found.dtype == np.int64
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("drafts", ["none", "ngram", "draft"])
@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BAD)
def test_a_row_that_is_not_numbers_ends_the_answer_by_name(
    kind: str, way: str, trees: bool, drafts: str
) -> None:
    """What came before is right; what depends on the row is an error; the next answer is right."""
    row = language(3, order=2, vocab_size=VOCAB)
    at = len(PROMPT) + 5

    def decoder(of: Any) -> SpeculativeDecoder:
        engine = FakeEngine(of, vocab_size=VOCAB, trees=trees)
        return SpeculativeDecoder(engine, drafter=drafter(drafts, row), draft_tokens=4)

    right = [token.id for token in decoder(row).stream(PROMPT, max_tokens=NEW, **WAYS[way])]
    broken = decoder(spoilt(kind, at=at))
    found = []
    stream = broken.stream(PROMPT, max_tokens=NEW, **WAYS[way])
    with pytest.raises(NoNumbersError, match="scores are not numbers") as caught:
        found.extend(token.id for token in stream)
    assert isinstance(caught.value, EngineError)
    assert found == right[: len(found)]
    echoed = len(PROMPT) if way == "echo" else 0
    assert len(found) - echoed <= at - len(PROMPT)
    if drafts == "none":
        assert len(found) - echoed == at - len(PROMPT)
    before = {"max_tokens": at - len(PROMPT), **WAYS[way]}
    again = [token.id for token in broken.stream(PROMPT, **before)]
    assert again == [token.id for token in decoder(row).stream(PROMPT, **before)]


@pytest.mark.parametrize("kind", BAD)
def test_a_prompt_whose_own_scores_are_not_numbers(kind: str) -> None:
    decoder = SpeculativeDecoder(FakeEngine(spoilt(kind, at=3), vocab_size=VOCAB))
    with pytest.raises(NoNumbersError):
        decoder.generate(PROMPT, max_tokens=2, prompt_logprobs=0)
    assert decoder.generate(PROMPT, max_tokens=2).finish_reason == "length"  # not looked at


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", BAD)
def test_in_a_batch_its_own_row_fails_alone(kind: str, way: str) -> None:
    row = language(3, order=2, vocab_size=VOCAB)
    prompts = [PROMPT, PROMPT[:5], [*PROMPT, 4]]

    def answers(of: Any) -> list[Any]:
        engine = FakeEngine(of, vocab_size=VOCAB, max_batch=3)
        batch = BatchDecoder(engine, drafter=drafter("draft", row, 3), draft_tokens=3)
        asked = [batch.submit(prompt, max_tokens=NEW, **WAYS[way]) for prompt in prompts]
        found = drain(batch)
        return [(one, ids(found[one])) for one in asked]

    right = answers(row)

    def of(prefix: tuple[int, ...]) -> Any:
        own = tuple(PROMPT[:5])
        bad = len(prefix) == 9 and prefix[:5] == own and prefix[: len(PROMPT)] != tuple(PROMPT)
        return BAD[kind](row(prefix)) if bad else row(prefix)

    found = answers(of)
    assert isinstance(found[1][0].error, NoNumbersError)
    assert found[1][1] == right[1][1][: len(found[1][1])]
    for other in (0, 2):
        assert found[other][0].error is None
        assert found[other][1] == right[other][1]
