"""The search for layers to draft with, over targets that are made up."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.controller import CallCosts
from specplug.skip_search import LONGEST, Candidate, Layers, RoundCosts, Runs, search_layers

FLAT = CallCosts({1: 10.0, LONGEST + 1: 12.0})
PLACES = 100_000


def runs(chance: float) -> Runs:
    """What places give of which each guess is right with the same chance."""
    tested, right, left = [], [], PLACES
    for _ in range(LONGEST):
        tested.append(left)
        left = round(left * chance)
        right.append(left)
    return Runs(tuple(tested), tuple(right))


def harmful(harm: dict[int, float], layers: int) -> Callable[[Layers], Runs]:
    """Each layer that is missing takes its share of the right guesses."""

    def judge(kept: Layers) -> Runs:
        chance = 1.0
        for layer in range(layers):
            if layer not in kept:
                chance *= 1 - harm.get(layer, 0.0)
        return runs(chance)

    return judge


def costs(layers: int, base: float = 1.0) -> RoundCosts:
    """Drafts of all layers take what the target's single call does."""
    return RoundCosts(FLAT, base, (10.0 - base) / layers)


@pytest.mark.parametrize("idle", [(0,), (11,), (3, 4, 9), (1, 2, 5, 6, 7, 10)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_idle_layers_are_skipped_and_no_others(idle: tuple[int, ...], seed: int) -> None:
    harm = dict.fromkeys(set(range(12)) - set(idle), 0.7)
    found = search_layers(12, harmful(harm, 12), costs(12), seconds=1e9, seed=seed)
    assert found.finished
    assert found.best.layers == tuple(sorted(harm))
    assert found.best.runs.chances == [1.0] * LONGEST
    assert found.best.draft_tokens == LONGEST


@settings(deadline=None)
@given(st.lists(st.floats(0, 0.9), min_size=2, max_size=5), st.floats(0, 9), st.integers(0, 9))
def test_nothing_near_the_best_set_is_better(harms: list[float], base: float, seed: int) -> None:
    """Where layers do harm apart from one another, the best set of all is found."""
    layers = len(harms)
    judge, prices = harmful(dict(enumerate(harms)), layers), costs(layers, base)
    found = search_layers(layers, judge, prices, seconds=1e9, seed=seed)
    sets = [kept for n in range(1, layers) for kept in combinations(range(layers), n)]
    fastest = max(prices.speed(judge(kept).reaches, prices.draft(len(kept)))[0] for kept in sets)
    assert found.best.tokens_per_second == pytest.approx(fastest, rel=1e-3)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=LONGEST), st.floats(0.1, 20))
def test_the_speed_is_that_of_the_best_number_of_drafts(
    chances: list[float], seconds: float
) -> None:
    reaches, reach = [], 1.0
    for chance in chances:
        reach *= chance
        reaches.append(reach)
    speed, drafted = costs(3).speed(reaches, seconds)
    every = [
        (1 + sum(reaches[:k])) / (FLAT[k + 1] + k * seconds) for k in range(1, len(reaches) + 1)
    ]
    assert speed == pytest.approx(max(every))
    assert every[drafted - 1] == pytest.approx(speed)


def test_counts_become_chances() -> None:
    counted = Runs(tested=(8, 4, 1, 0), right=(4, 1, 0, 0))
    assert counted.chances == [0.5, 0.25, 0.0, 0.0]
    assert counted.reaches == [0.5, 0.125, 0.0, 0.0]
    assert counted.tokens == 1.625


def test_costs_are_a_line_through_two_calls() -> None:
    found = RoundCosts.of(FLAT, 30, 15, 6.0)
    assert found.draft(30) == pytest.approx(10.0)
    assert found.draft(15) == pytest.approx(6.0)
    assert found.plain == 0.1
    # A measurement that went wrong: skipping a layer then gains nothing.
    assert RoundCosts.of(FLAT, 30, 15, 11.0).draft(1) == 11.0


def test_the_seed_gives_the_same_search() -> None:
    def tried(seed: int) -> list[Layers]:
        order = []
        judge = harmful({layer: layer % 3 / 4 for layer in range(10)}, 10)

        def noting(kept: Layers) -> Runs:
            order.append(kept)
            return judge(kept)

        search_layers(10, noting, costs(10), seconds=1e9, seed=seed)
        assert len({*order}) == len(order)  # nothing twice
        return order

    assert tried(3) == tried(3)
    assert tried(3) != tried(4)


@pytest.mark.parametrize("most", [1, 7, 40])
def test_it_ends_when_the_time_does(most: int) -> None:
    """One set at least, and the best one so far."""
    told: list[tuple[int, Candidate, float]] = []
    ticks = count()
    judge = harmful(dict.fromkeys(range(0, 20, 2), 0.5), 20)
    found = search_layers(
        20,
        judge,
        costs(20),
        seconds=2 * most,  # two looks at the clock a set
        report=lambda *what: told.append(what),
        clock=lambda: float(next(ticks)),
    )
    assert not found.finished
    assert found.tried == len(told) == most
    assert [tried for tried, _, _ in told] == list(range(1, most + 1))
    assert found.best == max((best for _, best, _ in told), key=lambda best: best.merit)
    assert all(left >= 0 for _, _, left in told)


def test_one_layer_cannot_be_skipped() -> None:
    with pytest.raises(ValueError, match="a model of 1 layer: to skip some it needs two"):
        search_layers(1, harmful({}, 1), costs(1), seconds=1)
