"""How many tokens to draft: over simulated engines, of any cost and any luck."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Budget, Proposal
from specplug.budget import Prices
from specplug.controller import LONGEST, CallCosts, FixedLength, MeasuredLength
from specplug.drafters import Guess, Source, TreeDrafter
from tests_support.drafting import outcome, request

CONTEXT = np.zeros(1, dtype=np.int64)


class Coin(Source):
    """Guesses token 1."""

    name = "coin"

    def __init__(self, prior):
        self._prior = prior

    def begin(self, context):
        return 0

    def step(self, place, token):
        return place

    def guesses(self, place):
        return [Guess(1, "coin")]

    def prior(self, kind):
        return self._prior


def simulate(seconds, right, tokens, *, prior=0.5, length=None):
    """Time for so many tokens, over plain decoding's.

    Args:
        seconds: of a call by width.
        right: from a position to whether the target's token there is 1.
    """
    length = length or MeasuredLength(CallCosts(seconds))
    drafter = TreeDrafter("coin", [Coin(prior)])
    drafter.reset(request(8))
    done = spent = 0
    while done < tokens:
        budget = length.budget(tokens, branching=False)
        proposal = drafter.propose(CONTEXT, budget) if budget else Proposal()
        accepted = 0
        while accepted < len(proposal) and right(done + accepted):
            accepted += 1
        said = [1] * accepted + [int(right(done + accepted))]
        drafter.commit(outcome(proposal, accepted, said))
        cost = seconds[1 + len(proposal)]
        length.observe(1 + len(proposal), cost)
        length.record(len(proposal), len(said), 0.0)
        spent += cost
        done += len(said)
    return spent / (done * seconds[1])


CURVES = st.lists(st.floats(0, 0.6), min_size=LONGEST, max_size=LONGEST).map(
    lambda steps: dict(enumerate(np.cumsum([1.0, *steps]).tolist(), start=1))
)


def coins(seed, chances, period):
    """Right with one chance for a while, then with the next, and so on."""
    random = np.random.default_rng(seed)
    drawn = random.random(1 << 14)
    return lambda at: bool(drawn[at] < chances[at // period % len(chances)])


@given(
    CURVES,
    st.integers(0, 1000),
    st.lists(st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.8, 0.95, 1.0]), min_size=1, max_size=4),
    st.sampled_from([20, 150, 700]),
    st.sampled_from([0.05, 0.5, 0.95]),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_never_slower_than_plain_decoding(seconds, seed, chances, period, prior) -> None:
    assert simulate(seconds, coins(seed, chances, period), 2000, prior=prior) <= 1 / 0.98


def test_never_slower_even_against_an_adversary() -> None:
    """Every draft is wrong, and every guess that is not drafted right."""
    for step in (0.05, 0.3, 0.9):
        seconds = {width: 1 + step * (width - 1) for width in range(1, LONGEST + 2)}
        length = MeasuredLength(CallCosts(seconds))
        drafter = TreeDrafter("coin", [Coin(0.9)])
        drafter.reset(request(8))
        spent = 0.0
        for _ in range(2000):
            budget = length.budget(99, branching=False)
            proposal = drafter.propose(CONTEXT, budget) if budget else Proposal()
            drafter.commit(outcome(proposal, 0, [0 if len(proposal) else 1]))
            cost = seconds[1 + len(proposal)]
            length.observe(1 + len(proposal), cost)
            length.record(len(proposal), 1, 0.0)
            spent += cost
        assert spent <= 2000 / 0.98


def best_fixed(seconds, right, tokens):
    """The least time of a fixed number of drafts on the same text, over plain decoding's."""

    def with_drafts(k):
        done = spent = 0
        while done < tokens:
            accepted = 0
            while accepted < k and right(done + accepted):
                accepted += 1
            done += accepted + 1
            spent += seconds[k + 1]
        return spent / (done * seconds[1])

    return min(map(with_drafts, range(LONGEST + 1)))


@given(CURVES, st.integers(0, 1000), st.sampled_from([0.1, 0.3, 0.5, 0.7, 0.9, 0.97]))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_regret_against_the_best_fixed_number_shrinks(seconds, seed, chance) -> None:
    """Down to what following the text's character costs where the text has but one."""
    right = coins(seed, [chance], 1 << 14)
    regrets = [
        simulate(seconds, right, n, prior=0.3) / best_fixed(seconds, right, n) - 1
        for n in (60, 6000)
    ]
    assert regrets[1] <= 0.12
    assert regrets[1] <= max(regrets[0], 0.04)


def test_it_comes_back_when_the_text_changes_character() -> None:
    seconds = {width: 1 + 0.1 * (width - 1) for width in range(1, LONGEST + 2)}
    length = MeasuredLength(CallCosts(seconds))
    hopeless = simulate(seconds, lambda at: False, 3000, length=length)
    assert 1 <= hopeless <= 1 / 0.98
    assert simulate(seconds, lambda at: True, 400, prior=0.01, length=length) < 0.4


def test_a_drafter_that_does_not_pay_is_hardly_asked() -> None:
    seconds = {width: float(width) for width in range(1, LONGEST + 2)}
    length = MeasuredLength(CallCosts(seconds))
    asked = 0
    for _ in range(1000):
        asked += length.budget(99, branching=False) is not None
        length.observe(1, 1.0)
        length.record(0, 1, 0.0)
    assert asked < 150


@given(st.lists(st.floats(0.01, 2), min_size=2, max_size=10), st.floats(0.1, 3), st.data())
def test_the_size_is_the_best_prefix(steps, rate, data) -> None:
    seconds = [0.0, *np.cumsum(steps).tolist()]
    reaches = sorted(data.draw(st.lists(st.floats(0, 1), max_size=len(steps))), reverse=True)
    budget = Budget(len(steps), prices=Prices(seconds), rate=rate)
    worth = [sum(reaches[:n]) - rate * seconds[n] for n in range(len(reaches) + 1)]
    assert worth[budget.size(reaches)] == pytest.approx(max(worth), abs=1e-9)
    # A token that the best prefix holds is never refused while it is built.
    for n in range(budget.size(reaches)):
        assert budget.pays(n, max(reaches[n], 1e-12) * (1 + 1e-6))


def test_a_step_is_taken_whole_or_not_at_all() -> None:
    """Where three more tokens cost no more than one, one alone is not dear."""
    budget = Budget(4, prices=Prices([0, 1, 1, 1, 2]), rate=1.0)
    assert budget.pays(0, 0.4)
    assert budget.size([0.4, 0.4, 0.4]) == 3
    assert budget.size([0.4, 0.4]) == 0


def test_tokens_that_padding_would_take_are_free() -> None:
    costs = CallCosts({1: 2.0, 2: 2.0, 3: 3.0})
    budget = MeasuredLength(costs).budget(9, branching=False)
    assert budget is not None
    assert budget.pays(0, 1e-9)
    assert not budget.pays(1, 1e-9)


def test_costs_between_and_beyond_the_measured_widths() -> None:
    costs = CallCosts({1: 1.0, 4: 4.0, 8: 6.0}, widest=12)
    assert [costs[w] for w in (1, 2, 4, 6, 8, 10, 12, 50)] == [1, 2, 4, 5, 6, 7, 8, 8]
    falling = CallCosts({1: 1.0, 4: 0.5})
    assert falling[4] == 1.0
    for wrong in ({}, {0: 1.0}, {1: 0.0}):
        with pytest.raises(ValueError, match="costs"):
            CallCosts(wrong)


def test_costs_follow_the_machine_and_forget_outliers() -> None:
    costs = CallCosts({1: 1.0, 16: 2.0})
    before = costs[5]
    costs.observe(5, 1000.0)
    assert costs[5] < 1.03 * before
    for _ in range(200):
        costs.observe(5, 3 * before)
    assert costs[5] == pytest.approx(3 * before, rel=0.02)
    assert costs[1] > 1.5  # what slows one width down slows the others, too


def test_a_fixed_number_is_what_it_says() -> None:
    assert FixedLength(0).budget(9, branching=True) is None
    assert FixedLength(4).budget(2, branching=True) == Budget(2, branching=True)
