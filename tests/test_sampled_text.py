"""Sampling through the running loop: one text a seed, and the target's distribution."""

from __future__ import annotations

import itertools
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import ModelDrafter, NgramDrafter, NoDrafter, SamplingParams, SpeculativeDecoder
from specplug.engines.fake import FakeEngine
from tests_support.languages import language

VOCAB = 6


table = partial(language, vocab_size=VOCAB)


def decoder(seed: int, drafter: str, k: int, min_width: int = 1) -> SpeculativeDecoder:
    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(FakeEngine(table(seed, 1), vocab_size=VOCAB, min_width=2)),
        "same": lambda: ModelDrafter(FakeEngine(table(seed), vocab_size=VOCAB)),
    }[drafter]()
    target = FakeEngine(table(seed), vocab_size=VOCAB, min_width=min_width)
    return SpeculativeDecoder(target, drafter=made, draft_tokens=k)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.7, 1.0, 1.5]),
    top_k=st.sampled_from([0, 3]),
    top_p=st.sampled_from([1.0, 0.9]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    no_repeat_ngram=st.sampled_from([0, 4]),
    banned_tokens=st.sampled_from([(), (0,)]),
    forced_tokens=st.sampled_from([{}, {2: 1}]),
    seed=st.integers(0, 2**64 - 1),
)


@settings(deadline=None, max_examples=200)
@given(
    params=PARAMS,
    language=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12),
    max_tokens=st.integers(1, 24),
    sample=st.integers(0, 3),
    k=st.integers(1, 7),
    min_width=st.integers(1, 3),
)
def test_the_text_depends_on_the_seed_alone(
    params, language, prompt, max_tokens, sample, k, min_width
) -> None:
    options = {"max_tokens": max_tokens, "sampling": params, "sample": sample}
    expected = decoder(language, "none", 0).generate(prompt, **options).token_ids
    for drafter in ("ngram", "draft", "same"):
        result = decoder(language, drafter, k, min_width).generate(prompt, **options)
        assert result.token_ids == expected, drafter
        if drafter == "same":
            assert result.stats.accepted == result.stats.drafted


def test_seeds_and_samples_differ() -> None:
    texts = {
        decoder(3, "none", 0)
        .generate(
            [1], max_tokens=30, sampling=SamplingParams(temperature=1, seed=seed), sample=sample
        )
        .token_ids
        for seed, sample in itertools.product((0, 1), (0, 1))
    }
    assert len(texts) == 4


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
@pytest.mark.parametrize("drafter", ["ngram", "draft", "same"])
def test_the_same_run_gives_the_same_text(acceptance: str, drafter: str) -> None:
    params = SamplingParams(temperature=0.9, acceptance=acceptance, seed=5)
    runs = [
        decoder(4, drafter, 3).generate([1, 2], max_tokens=40, sampling=params) for _ in range(2)
    ]
    assert runs[0].token_ids == runs[1].token_ids
    if drafter == "same":  # drawn from the target's own distribution: never refused
        assert runs[0].stats.accepted == runs[0].stats.drafted


def test_unknown_tokens_are_refused_before_any_work() -> None:
    made = decoder(1, "none", 0)
    with pytest.raises(ValueError, match=r"banned_tokens: token id 6 is not in \[0, 6\)"):
        made.generate([1], sampling=SamplingParams(banned_tokens=[6]))
    assert not made.target.steps


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_that_nothing_may_follow_do_not_end_an_answer(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, no_repeat_ngram=1, seed=3)
    plain, drafting = (decoder(1, drafter, 7) for drafter in ("none", "same"))
    plain.stop_token_ids = drafting.stop_token_ids = frozenset({4})
    for first in (0, 1, 2, 3, 5):
        expected, found = (
            one.generate([first], max_tokens=24, sampling=params) for one in (plain, drafting)
        )
        assert found.token_ids == expected.token_ids
        assert found.finish_reason == "stop"
