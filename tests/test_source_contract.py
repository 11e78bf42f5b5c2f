"""Every source of guesses, over random contexts and drafts that other sources may have chosen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Budget, History, Proposal
from specplug.drafters import (
    HistorySource,
    ModelSource,
    NgramSource,
    PredictedSource,
    RecycleSource,
    Source,
    SuffixSource,
    TreeDrafter,
)
from specplug.drafters.universal import WAYS
from specplug.engines.fake import FakeEngine
from specplug.translation import Translation
from tests_support.drafting import outcome, request
from tests_support.languages import language
from tests_support.made_tokenizers import byte_level, spelling_of

VOCAB = 5
TOKENIZER, OTHER = byte_level(100), byte_level(150)


def model(vocab_size: int = VOCAB) -> ModelSource:
    return ModelSource(FakeEngine(language(1, vocab_size=vocab_size), vocab_size=vocab_size))


def universal(way: str) -> Source:
    size = OTHER.get_vocab_size()
    engine = FakeEngine(language(2, 1, vocab_size=size), vocab_size=size)
    spelt = spelling_of(TOKENIZER), spelling_of(OTHER)
    sizes = {"target_size": TOKENIZER.get_vocab_size(), "draft_size": size}
    return WAYS[way](engine, Translation(*spelt, **sizes))  # type: ignore[index]


def history() -> HistorySource:
    made = History()
    made.add("", [0, 1, 2, 3, 0, 1, 4, VOCAB + 3, 1, 2])
    return HistorySource(made)


SOURCES: dict[str, tuple[Callable[[], Source], int]] = {
    "ngram": (NgramSource, VOCAB),
    "ngram-1": (lambda: NgramSource(prompt_lookup_min=1, prompt_lookup_max=2), VOCAB),
    "suffix": (SuffixSource, VOCAB),
    "history": (history, VOCAB),
    "predicted": (PredictedSource, VOCAB),
    "recycle": (RecycleSource, VOCAB),
    "recycle-warm": (
        lambda: RecycleSource(np.array([[1, -1], [2, 0], [0, 1]], dtype=np.int32)),
        VOCAB,
    ),
    "draft": (model, VOCAB),
    "draft-smaller": (lambda: model(VOCAB - 2), VOCAB),
    "draft-larger": (lambda: model(VOCAB + 2), VOCAB),
    **{way: (lambda way=way: universal(way), TOKENIZER.get_vocab_size()) for way in WAYS},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", SOURCES)
@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_a_source_follows_whatever_was_drafted(name: str, data: st.DataObject) -> None:
    """It raises nothing, guesses tokens of the target, and can be told any token after any."""
    make, vocab_size = SOURCES[name]
    source = make()
    token = st.integers(0, vocab_size - 1)
    context = data.draw(st.lists(token, min_size=1, max_size=12))
    asked = request(
        vocab_size,
        prompt_tokens=len(context),
        prediction=data.draw(st.lists(token, max_size=8)),
    )
    source.reset(asked)
    for _ in range(data.draw(st.integers(1, 3))):
        places = [source.begin(np.array(context, dtype=np.int64))]
        drafted: list[int] = []
        for _ in range(data.draw(st.integers(0, 8))):
            place = data.draw(st.sampled_from(places))
            if place is None:
                break
            guesses = [guess.token for guess in source.guesses(place)]
            assert all(0 <= guess < vocab_size for guess in guesses)
            assert len({*guesses}) == len(guesses)
            assert all(0 < source.prior(guess.kind) < 1 for guess in source.guesses(place))
            chosen = data.draw(st.sampled_from(guesses) | token if guesses else token)
            places.append(source.step(place, chosen))  # places stay: a tree goes back to them
            drafted.append(chosen)
        accepted = data.draw(st.integers(0, len(drafted)))
        tokens = [*drafted[:accepted], data.draw(token)]
        best = data.draw(st.lists(token, min_size=len(drafted) + 1, max_size=len(drafted) + 1))
        source.commit(
            outcome(
                Proposal(tuple(drafted)), accepted, tokens,
                after=context[-1], best=best, vocab_size=vocab_size,
            )
        )  # fmt: skip
        context += tokens
    source.finish(asked, np.array(context, dtype=np.int64))


def test_an_ngram_that_is_at_its_end_is_lost() -> None:
    source = NgramSource(prompt_lookup_min=1)
    place = source.begin(np.array([1, 1], dtype=np.int64))
    assert place == (1, 1)
    assert source.step(source.step(place, 1), 7) is None


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_sources_in_one_tree_step_along_each_others_guesses(data: st.DataObject) -> None:
    names = data.draw(
        st.lists(st.sampled_from([*SOURCES][:-2]), min_size=2, max_size=4, unique=True)
    )
    drafter = TreeDrafter("all", [SOURCES[name][0]() for name in names])
    context = data.draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20))
    drafter.reset(replace(request(VOCAB, prompt_tokens=len(context)), prediction=context[::-1]))
    budget = Budget(data.draw(st.integers(1, 20)), branching=data.draw(st.booleans()))
    made: Any = drafter.propose(np.array(context, dtype=np.int64), budget)
    assert len(made) <= budget.most
    assert all(0 <= token < VOCAB for token in made.tokens)
