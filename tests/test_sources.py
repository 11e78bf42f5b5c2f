"""What drafts come from: earlier text, earlier requests, the caller's expectation, the target."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import BatchDecoder, Budget, History, Proposal, SamplingParams, SpeculativeDecoder
from specplug.budget import Prices
from specplug.drafters import (
    DRAFTERS,
    OF_A_BUNDLE,
    Guess,
    HistorySource,
    PredictedSource,
    RecycleSource,
    Source,
    SuffixSource,
    TreeDrafter,
)
from specplug.engines.fake import FakeEngine
from specplug.opening import make_drafter
from tests_support.drafting import outcome, request
from tests_support.languages import language

VOCAB = 12


def context(*tokens: int) -> np.ndarray:
    return np.array(tokens, dtype=np.int64)


def chain(source: Source, tokens: list[int], k: int, **options) -> tuple[int, ...]:
    """What a source alone drafts after a text."""
    drafter = TreeDrafter("one", [source])
    drafter.reset(request(VOCAB, **options))
    return drafter.propose(context(*tokens), Budget(k)).tokens


@pytest.mark.parametrize("name", [name for name in DRAFTERS if name not in ("none", *OF_A_BUNDLE)])
@given(
    seed=st.integers(0, 300),
    k=st.sampled_from([1, 4, "auto"]),
    temperature=st.sampled_from([0.0, 1.0]),
    trees=st.booleans(),
    wrong=st.lists(st.integers(0, 3), max_size=5),
)
@settings(max_examples=25, deadline=None)
def test_text_is_plain_decodings(name, seed, k, temperature, trees, wrong) -> None:
    """For every drafter, over several requests, with predictions right and wrong."""
    row = language(seed, order=1, vocab_size=4)
    sampling = SamplingParams(temperature=temperature, seed=seed)
    plain = SpeculativeDecoder(FakeEngine(row, vocab_size=4))
    target = FakeEngine(row, vocab_size=4, min_width=2, trees=trees)
    decoder = SpeculativeDecoder(target, drafter=make_drafter(name), draft_tokens=k)
    for prompt in ([1, 2, 3], [2, 2], [1, 2, 3]):
        wanted = plain.generate(prompt, max_tokens=40, sampling=sampling).token_ids
        guess = [*wanted[:10], *wrong, *wanted[12:]]
        found = decoder.generate(prompt, max_tokens=40, sampling=sampling, prediction=guess)
        assert found.token_ids == wanted
        if name != "ngram" and k != "auto":
            assert found.stats.drafted


def test_the_longest_match_wins_and_then_the_most_frequent() -> None:
    #        …5 6 7…        …1 6 8 twice…
    text = [5, 6, 7, 0, 1, 6, 8, 2, 1, 6, 8, 3, 5, 6]
    assert chain(SuffixSource(), text, 1) == (7,)
    assert chain(SuffixSource(), [9, *text[:-2], 4, 6], 1) == (8,)


def test_history_finds_earlier_requests_of_the_same_tenant() -> None:
    history = History()
    history.add("a", [1, 2, 3, 4, 5, 6])
    assert chain(HistorySource(history), [9, 2, 3], 3, tenant="a") == (4, 5, 6)
    assert chain(HistorySource(history), [9, 2, 3], 3, tenant="b") == ()
    history.add("a", [8, 2, 3, 7])
    assert chain(HistorySource(history), [9, 2, 3], 1, tenant="a") in ((4,), (7,))
    history.forget("a")
    assert chain(HistorySource(history), [9, 2, 3], 3, tenant="a") == ()


def test_texts_in_the_history_do_not_run_into_one_another() -> None:
    history = History()
    history.add("", [1, 2, 3])
    history.add("", [4, 5, 6])
    assert chain(HistorySource(history), [2, 3], 3) == ()


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 90)), max_size=40))
def test_history_is_bounded(added) -> None:
    history = History(100)
    for tenant, size in added:
        history.add(tenant, [7] * size)
        assert len(history) <= 100
        if size:
            assert history.texts(tenant)  # the latest is there
    assert not History(0).texts("a")


@given(
    st.lists(st.integers(1, 8), max_size=6),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 90)), max_size=40),
)
def test_no_tenant_makes_another_forget_what_fits_its_share(ours, added) -> None:
    history, tokens = History(400), 0
    for number, size in enumerate(ours):  # 54 tokens at most, of 100
        history.add("ours", range(100 * number, 100 * number + size))
        tokens += size + 1
    for tenant, size in added:
        history.add(tenant, [7] * size)
        assert sum(text.tokens for text in history.texts("ours")) == tokens


def test_history_of_ten_thousand_tenants_is_quick_and_bounded() -> None:
    history = History(100_000)
    started = time.process_time()
    for number in range(10_000):
        history.add(f"tenant {number}", range(8))
    for _ in range(2):
        history.add("long", range(49_000))
    assert time.process_time() - started < 5  # it took half a minute
    assert not history.texts("tenant 0")
    assert history.texts("tenant 9999")


def test_history_off_keeps_nothing() -> None:
    history = History(0)
    history.add("a", [1, 2, 3])
    assert len(history) == 0
    with pytest.raises(ValueError, match="history of -1 tokens"):
        History(-1)


def test_a_finished_answer_is_remembered_and_an_interrupted_one_too() -> None:
    row = language(3, order=2, vocab_size=VOCAB)
    history = History()
    drafter = make_drafter("suffix", history=history)
    engine = FakeEngine(row, vocab_size=VOCAB)
    decoder = SpeculativeDecoder(engine, drafter=drafter, draft_tokens=8)
    stream = decoder.stream([1, 2, 3], max_tokens=30, tenant="x")
    for _ in range(5):
        next(stream)
    stream.close()
    assert 3 < len(history) < 20
    first = decoder.generate([1, 2, 4], max_tokens=30, tenant="x")
    assert len(history) > 30
    again = decoder.generate([1, 2, 4], max_tokens=30, tenant="x")
    assert again.token_ids == first.token_ids
    assert again.stats.acceptance_length > first.stats.acceptance_length


def test_an_abandoned_answer_is_remembered_under_its_own_tenant() -> None:
    """Though it is given up only when the next tenant's answer has begun."""
    engine = FakeEngine(language(3, vocab_size=VOCAB), vocab_size=VOCAB, max_batch=2)
    history = History()
    drafter = make_drafter("auto", history=history)
    decoder = BatchDecoder(engine, drafter=drafter, draft_tokens=2)
    abandoned = decoder.submit([1, 2, 3], max_tokens=30, tenant="a")
    decoder.submit([4, 5], max_tokens=30, tenant="b")
    decoder.step()
    decoder.step()
    assert decoder.running == 2
    abandoned.cancel()
    decoder.step()
    assert history.texts("a")
    assert not history.texts("b")


def test_history_of_another_vocabulary_is_not_drafted() -> None:
    history = History()
    history.add("", [1, 2, VOCAB + 5])
    assert chain(HistorySource(history), [9, 1, 2], 3) == ()


def test_a_prediction_of_unknown_tokens_is_refused() -> None:
    engine = FakeEngine(language(3, vocab_size=VOCAB), vocab_size=VOCAB)
    decoder = SpeculativeDecoder(engine, drafter=make_drafter("predicted"))
    with pytest.raises(ValueError, match=f"prediction: token id {VOCAB} is outside"):
        decoder.generate([1], prediction=[1, VOCAB])
    with pytest.raises(ValueError, match="a prediction in text needs a tokenizer"):
        decoder.generate([1], prediction="text")
    assert not engine.steps


def test_history_is_shared_by_threads() -> None:
    """Decoders that add while others look: every text stays plain decoding's."""
    row = language(5, order=2, vocab_size=6)
    history = History(400)
    plain = SpeculativeDecoder(FakeEngine(row, vocab_size=6))
    prompts = [[a, b] for a in range(6) for b in range(6)]
    wanted = [plain.generate(prompt, max_tokens=30).token_ids for prompt in prompts]
    failures = []

    def work(first: int) -> None:
        engine = FakeEngine(row, vocab_size=6)
        drafter = make_drafter("auto", history=history)
        decoder = SpeculativeDecoder(engine, drafter=drafter, draft_tokens=6)
        for index in range(first, len(prompts), 3):
            found = decoder.generate(prompts[index], max_tokens=30).token_ids
            if found != wanted[index]:
                failures.append(index)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(history) <= 400


EXPECTED = [10, 11, 3, 4, 5, 6, 7, 8, 9, 3, 4, 1]


@pytest.mark.parametrize(
    ("answer", "drafted"),
    [
        ([], (10, 11, 3, 4)),  # the beginning
        ([10, 11, 3], (4, 5, 6, 7)),  # followed so far
        ([10, 11, 3, 2], ()),  # left it, and nowhere yet
        ([10, 11, 3, 2, 5, 6], (7, 8, 9, 3)),  # a token was replaced
        ([10, 11, 3, 2, 2, 4, 5], (6, 7, 8, 9)),  # some were inserted
        ([10, 7, 8], (9, 3, 4, 1)),  # some were left out
        ([10, 11, 3, 4, 5, 0, 3, 4], (1,)),  # of two places the one that is still to come
    ],
)
def test_a_prediction_is_found_again_after_an_edit(answer, drafted) -> None:
    source = PredictedSource()
    options = {"prompt_tokens": 2, "prediction": EXPECTED}
    assert chain(source, [1, 1, *answer], 4, **options) == drafted
    # The same, round by round.
    drafter = TreeDrafter("predicted", [PredictedSource()])
    drafter.reset(request(VOCAB, **options))
    for end in range(len(answer) + 1):
        proposal = drafter.propose(context(1, 1, *answer[:end]), Budget(4))
        drafter.commit(outcome(proposal, 0, [0]))
    assert proposal.tokens == drafted


def test_recycling_learns_what_the_target_said_after_each_token() -> None:
    drafter = TreeDrafter("recycle", [RecycleSource()])
    drafter.reset(request(VOCAB))
    assert not drafter.propose(context(3), Budget(4)).tokens
    # A wrong draft's row is worth as much as a right one's.
    drafter.commit(outcome(Proposal((5, 6)), 0, [4], after=3, best=[4, 7, 8], vocab_size=VOCAB))
    assert drafter.propose(context(3, 4, 5), Budget(4)).tokens == (7,)
    drafter.commit(outcome(Proposal(), 0, [6], after=7, best=[6], vocab_size=VOCAB))
    drafter.reset(request(VOCAB))  # another request: the target is the same
    assert drafter.propose(context(5), Budget(4)).tokens == (7, 6, 8)


def test_recycling_starts_warm() -> None:
    warm = np.full((VOCAB, 3), -1, dtype=np.int32)
    warm[2] = [5, 6, 7]
    drafter = TreeDrafter("recycle", [RecycleSource(warm)])
    drafter.reset(request(VOCAB))
    tree = drafter.propose(context(2), Budget(3, branching=True))
    assert (tree.tokens, tree.parents) == ((5, 6, 7), (-1, -1, -1))
    drafter.commit(outcome(Proposal(), 0, [6], after=2, best=[6], vocab_size=VOCAB))
    assert drafter.propose(context(2), Budget(1)).tokens == (6,)
    assert not drafter.propose(context(3), Budget(3)).tokens


class Stated(Source):
    """Guesses what a table says, by the tokens since the context."""

    def __init__(self, name: str, table: dict[tuple[int, ...], list[tuple[int, float]]], seconds=0):
        self.name, self.table, self._seconds, self.asked = name, table, seconds, 0

    @property
    def seconds(self):
        return self._seconds

    def begin(self, context):
        return ()

    def step(self, place, token):
        return (*place, token)

    def guesses(self, place):
        self.asked += 1
        return [Guess(token, chance) for token, chance in self.table.get(place, [])]

    def prior(self, kind):
        return 0.01 if kind == "any" else kind


def test_nodes_go_where_they_are_likeliest_to_be_reached() -> None:
    first = Stated("first", {(): [(1, 0.6), (2, 0.3)], (1,): [(3, 0.5)], (2,): [(4, 0.9)]})
    second = Stated("second", {(): [(5, 0.2), (1, 0.1)], (1, 3): [(6, 0.8)]})
    drafter = TreeDrafter("both", [first, second])
    drafter.reset(request(VOCAB))
    tree = drafter.propose(context(0), Budget(6, branching=True))
    #        reach 0.6   0.3 (0.6*0.5)  0.3        0.27        0.24
    assert tree.tokens[:1] == (1,)
    assert set(zip(tree.tokens, tree.parents, strict=True)) == {
        (1, -1), (2, -1), (3, 0), (4, tree.tokens.index(2)), (6, tree.tokens.index(3)), (5, -1),
    }  # fmt: skip
    chain_only = drafter.propose(context(0), Budget(6))
    assert chain_only.tokens == (1, 3, 6)
    assert not chain_only.branches
    drafter.close()


def test_a_token_is_drafted_if_it_is_worth_its_price() -> None:
    source = Stated("one", {(): [(1, 0.6)], (1,): [(2, 0.5)], (1, 2): [(3, 0.5)]})
    drafter = TreeDrafter("one", [source])
    drafter.reset(request(VOCAB))
    prices = Prices([0.0, 0.25, 0.5, 0.75])
    assert len(drafter.propose(context(0), Budget(3, prices=prices, rate=1.0))) == 2
    assert len(drafter.propose(context(0), Budget(3, prices=prices, rate=0.5))) == 3
    assert len(drafter.propose(context(0), Budget(3, prices=prices, rate=3.0))) == 0


def test_a_costly_source_is_asked_only_where_it_may_pay() -> None:
    free = Stated("free", {(): [(1, 0.85)]})
    costly = Stated("costly", {(): [(2, 0.9)]}, seconds=1.0)
    drafter = TreeDrafter("both", [free, costly])
    drafter.reset(request(VOCAB))
    prices = Prices([0.0, 0.1, 0.2])
    assert drafter.propose(context(0), Budget(2, prices=prices, rate=1.0)).tokens == (1,)
    assert costly.asked == 0
    assert drafter.propose(context(0), Budget(1)).tokens == (2,)
    assert costly.asked == 1


def test_chances_are_learnt_by_kind() -> None:
    source = Stated("one", {(): [(1, 0.9)]})
    drafter = TreeDrafter("one", [source])
    drafter.reset(request(VOCAB))
    prices = Prices([0.0, 0.5])
    budget = Budget(1, prices=prices, rate=1.0)
    assert len(drafter.propose(context(0), budget)) == 1
    for _ in range(12):
        proposal = drafter.propose(context(0), budget)
        drafter.commit(outcome(proposal, 0, [2]))
    assert len(drafter.propose(context(0), budget)) == 0
    for _ in range(30):  # not drafted, and right nevertheless: it is worth a try again
        drafter.propose(context(0), budget)
        drafter.commit(outcome(Proposal(), 0, [1]))
    assert len(drafter.propose(context(0), budget)) == 1
