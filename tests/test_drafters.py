"""Drafters against slow references, and the draft model's bookkeeping."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug import Budget, ModelDrafter, NgramDrafter
from specplug.engines.fake import FakeEngine
from tests_support.drafting import outcome, request

CONTEXT = st.lists(st.integers(0, 3), min_size=1, max_size=40)


def reference(context: list[int], k: int, shortest: int, longest: int) -> tuple[int, ...]:
    """The continuation of the latest among the longest earlier matches, by trying them all."""
    best, start = 0, None
    for end in range(1, len(context)):  # the match ends before position ``end``
        length = 0
        while (
            length < min(longest, end)
            and context[end - 1 - length] == context[len(context) - 1 - length]
        ):
            length += 1
        if length >= max(best, shortest):
            best, start = length, end
    return tuple(context[start : start + k]) if start is not None else ()


def greedy_drafter(engine: FakeEngine, vocab_size: int) -> ModelDrafter:
    drafter = ModelDrafter(engine)
    drafter.reset(request(vocab_size))
    return drafter


@given(CONTEXT, st.integers(1, 6), st.integers(1, 4), st.integers(0, 6))
def test_ngram_is_the_latest_longest_match(context, k, shortest, more) -> None:
    longest = shortest + more
    drafter = NgramDrafter(prompt_lookup_min=shortest, prompt_lookup_max=longest)
    proposal = drafter.propose(np.array(context, dtype=np.int64), Budget(k))
    assert proposal.tokens == reference(context, k, shortest, longest)


@pytest.mark.parametrize(("shortest", "longest"), [(0, 3), (4, 3)])
def test_ngram_bounds(shortest: int, longest: int) -> None:
    with pytest.raises(ValueError, match=f"prompt_lookup_min {shortest}"):
        NgramDrafter(prompt_lookup_min=shortest, prompt_lookup_max=longest)


@given(st.data(), st.integers(1, 4))
def test_model_drafter_reads_each_context_right(data, k) -> None:
    """Whatever is accepted, drafts are the draft model's own greedy text after the context."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng(prefix).normal(size=4)

    engine = FakeEngine(row, vocab_size=4)
    drafter = greedy_drafter(engine, 4)
    context = data.draw(CONTEXT)
    for _ in range(6):
        proposal = drafter.propose(np.array(context, dtype=np.int64), Budget(k))
        expected = list(context)
        for token in proposal.tokens:
            assert token == int(np.argmax(row(tuple(expected)).astype(np.float32)))
            expected.append(token)
        assert len(proposal) == k
        accepted = data.draw(st.integers(0, k))
        committed = [*proposal.tokens[:accepted], data.draw(st.integers(0, 3))]
        drafter.commit(outcome(proposal, accepted, committed))
        context += committed
    widths = [step.tokens.shape[1] for step in engine.steps[1:]]
    assert max(widths, default=1) <= 2  # accepted drafts are never fed again


@given(st.integers(0, 1000), st.integers(1, 5))
def test_model_drafter_never_drafts_padding(seed: int, k: int) -> None:
    """A draft with more embeddings than the target: the best token that both have."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        return np.random.default_rng((seed, *prefix)).normal(size=7)

    drafter = greedy_drafter(FakeEngine(row, vocab_size=7), 4)
    context = [1, 2]
    for token in drafter.propose(np.array(context, dtype=np.int64), Budget(k)).tokens:
        assert token == int(np.argmax(row(tuple(context)).astype(np.float32)[:4]))
        context.append(token)


def test_model_drafter_stays_out_of_text_it_cannot_read() -> None:
    """A draft with fewer embeddings: a token beyond them ends its drafting, not the decoding."""
    engine = FakeEngine(lambda prefix: np.arange(4.0), vocab_size=4)
    drafter = greedy_drafter(engine, 6)
    proposal = drafter.propose(np.array([1, 2], dtype=np.int64), Budget(3))
    assert len(proposal) == 3
    drafter.commit(outcome(proposal, 3, [3, 3, 3, 5]))
    assert len(drafter.propose(np.array([1, 2, 3, 3, 3, 5], dtype=np.int64), Budget(3))) == 0
