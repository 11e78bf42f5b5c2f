"""The loop, over fake engines: the text is greedy decoding's, whatever is drafted."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import (
    ContextLimitError,
    Drafter,
    EngineError,
    ModelDrafter,
    NgramDrafter,
    NoDrafter,
    Proposal,
    SpeculativeDecoder,
)
from specplug.engines.fake import FakeEngine
from specplug.feeding import PREFILL_WIDTH
from tests_support.languages import language

VOCAB = 6


table = partial(language, vocab_size=VOCAB)


def greedy(row, prompt, count, stop=()):
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(np.argmax(np.asarray(row(tuple(tokens)), dtype=np.float32))))
        if tokens[-1] in stop:
            break
    return tokens[len(prompt) :]


class Scripted(Drafter):
    """Drafts what it is told to, so that every kind of proposal is met."""

    name = "scripted"

    def __init__(self, draw):
        self.draw, self.committed, self.context = draw, [], None

    def propose(self, context, budget):
        if self.context is not None:
            assert [*self.context, *self.committed] == context.tolist()
        self.context, self.committed = context.tolist(), []
        return Proposal(tuple(self.draw(st.lists(st.integers(0, VOCAB - 1), max_size=budget.most))))

    def commit(self, outcome):
        if self.context is not None:
            self.committed += outcome.tokens

    def reset(self, request):
        self.context, self.committed = None, []


@given(
    data=st.data(),
    seed=st.integers(0, 1000),
    prompt=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20),
    max_tokens=st.integers(1, 30),
    k=st.integers(0, 7),
    min_width=st.integers(1, 4),
    stop=st.sets(st.integers(0, VOCAB - 1), max_size=2),
    drafter=st.sampled_from(["none", "ngram", "draft", "same", "scripted"]),
)
@settings(max_examples=400, deadline=None)
def test_text_is_greedy_decodings(
    data, seed, prompt, max_tokens, k, min_width, stop, drafter
) -> None:
    row = table(seed)
    target = FakeEngine(row, vocab_size=VOCAB, min_width=min_width)
    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(FakeEngine(table(seed, 1), vocab_size=VOCAB, min_width=2)),
        "same": lambda: ModelDrafter(FakeEngine(row, vocab_size=VOCAB)),
        "scripted": lambda: Scripted(data.draw),
    }[drafter]()
    decoder = SpeculativeDecoder(target, drafter=made, draft_tokens=k, stop_token_ids=sorted(stop))
    for _ in range(2):  # a second generation starts clean
        result = decoder.generate(prompt, max_tokens=max_tokens)
        expected = greedy(row, prompt, max_tokens, stop)
        assert list(result.token_ids) == expected
        assert result.finish_reason == ("stop" if expected[-1] in stop else "length")
        stats = result.stats
        assert stats.new_tokens == len(expected)
        assert stats.prompt_tokens == len(prompt)
        # Each round after the prompt's gives its accepted drafts and, unless cut, one token more.
        cut = stats.rounds + stats.accepted + 1 - len(expected)
        assert cut in (0, 1)
        assert all(
            accepted <= drafted <= k
            for accepted, drafted in zip(
                stats.accepted_per_round, stats.drafted_per_round, strict=True
            )
        )
        if drafter == "same" and k and not stop:
            assert stats.accepted == stats.drafted


def test_padding_is_never_committed_and_calls_are_never_narrow() -> None:
    engine = FakeEngine(table(3), vocab_size=VOCAB, min_width=4)
    SpeculativeDecoder(engine).generate([1], max_tokens=5)
    assert [step.tokens.shape[1] for step in engine.steps] == [4] * 5
    assert [int(step.past[0]) for step in engine.steps] == [0, 1, 2, 3, 4]


def test_fake_engine_finds_a_loop_that_ignores_min_width() -> None:
    engine = FakeEngine(table(3), vocab_size=VOCAB, min_width=2)
    decoder = SpeculativeDecoder(FakeEngine(table(3), vocab_size=VOCAB))
    decoder.target = _Lying(engine)
    with pytest.raises(EngineError, match="narrower than min_width 2"):
        decoder.generate([1], max_tokens=2)


class _Lying:
    """An engine whose spec promises more than it keeps."""

    def __init__(self, engine):
        self.engine = engine
        self.spec = FakeEngine(table(0), vocab_size=VOCAB).spec

    def forward(self, step):
        return self.engine.forward(step)


def test_long_prompt_is_fed_in_pieces_and_scored_once() -> None:
    engine = FakeEngine(table(1), vocab_size=VOCAB)
    prompt = [i % VOCAB for i in range(2 * PREFILL_WIDTH + 7)]
    result = SpeculativeDecoder(engine).generate(prompt, max_tokens=1)
    assert [step.tokens.shape[1] for step in engine.steps] == [PREFILL_WIDTH, PREFILL_WIDTH, 7]
    assert all(step.scores_from == step.tokens.shape[1] - 1 for step in engine.steps)
    assert list(result.token_ids) == greedy(table(1), prompt, 1)


@pytest.mark.parametrize("min_width", [1, 3])
@pytest.mark.parametrize("k", [0, 5])
def test_context_limit(k: int, min_width: int) -> None:
    engine = FakeEngine(table(1), vocab_size=VOCAB, max_length=16, min_width=min_width)
    draft = ModelDrafter(FakeEngine(table(1), vocab_size=VOCAB, max_length=12))
    decoder = SpeculativeDecoder(engine, drafter=draft, draft_tokens=k)
    limit = engine.spec.context_limit
    result = decoder.generate([1, 2], max_tokens=100)
    assert result.finish_reason == "context"
    assert list(result.token_ids) == greedy(table(1), [1, 2], limit - 2)
    with pytest.raises(ContextLimitError, match=f"{limit} tokens and the context ends at {limit}"):
        decoder.generate([1] * limit, max_tokens=1)


def test_cancel_between_rounds() -> None:
    engine = FakeEngine(table(1), vocab_size=VOCAB)
    decoder = SpeculativeDecoder(engine)
    seen = []
    result_tokens = []
    for token in decoder.stream([1], max_tokens=50, cancelled=lambda: len(seen) == 3):
        seen.append(token)
        result_tokens.append(token.id)
    assert decoder.finish_reason == "cancelled"
    assert result_tokens == greedy(table(1), [1], 3)
    assert len(engine.steps) == 3


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        ([], {}, "prompt is empty"),
        ([0, VOCAB], {}, f"token id {VOCAB} is outside the vocabulary of {VOCAB}"),
        ([-1], {}, "token id -1"),
        ([1], {"max_tokens": 0}, "max_tokens 0"),
        ("text", {}, "text needs a tokenizer"),
    ],
)
def test_bad_input_is_refused_before_any_work(prompt, options, message) -> None:
    engine = FakeEngine(table(1), vocab_size=VOCAB)
    with pytest.raises(ValueError, match=message):
        SpeculativeDecoder(engine).generate(prompt, **options)
    assert not engine.steps


def test_bad_draft_tokens() -> None:
    engine = FakeEngine(table(1), vocab_size=VOCAB)
    with pytest.raises(ValueError, match="draft_tokens -1"):
        SpeculativeDecoder(engine, draft_tokens=-1)


def test_per_request_fields_add_up() -> None:
    row = table(5)
    decoder = SpeculativeDecoder(
        FakeEngine(row, vocab_size=VOCAB),
        drafter=ModelDrafter(FakeEngine(table(5, 1), vocab_size=VOCAB)),
        draft_tokens=3,
    )
    stats = decoder.generate([1, 2], max_tokens=40).stats
    fields = stats.as_dict()
    assert fields["num_spec_tokens"] == 3
    assert sum(fields["acceptance_histogram"]) == fields["num_spec_steps"] == stats.rounds
    weighted = sum(n * count for n, count in enumerate(fields["acceptance_histogram"]))
    assert weighted == fields["num_accepted_draft_tokens"] == stats.accepted
    assert sum(fields["per_step_drafted"]) == fields["num_draft_tokens"]
    by_length = fields["acceptance_histogram_by_draft_length"]
    assert sum(sum(counts) for counts in by_length.values()) == stats.rounds
    assert fields["mean_acceptance_length"] == pytest.approx(1 + stats.accepted / stats.rounds)
