"""Speculation changes no distribution: every branch of every rule, added up exactly."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.acceptance import (
    accept_greedy,
    block_chances,
    race,
    residual,
    try_siblings,
)
from specplug.types import Proposal

Rows = Callable[[tuple[int, ...]], np.ndarray]
Branch = tuple[int, np.ndarray]  # accepted tokens, and the distribution of the one after
Rule = Callable[
    [list[np.ndarray], list[np.ndarray], tuple[int, ...]], Iterator[tuple[float, Branch]]
]


def language(seed: int, vocab: int, kind: str) -> Rows:
    """Random rows, one a prefix: dense, with zeros, or all on one token."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        random = np.random.default_rng([seed, *(token + 1 for token in prefix)])
        weights = random.exponential(size=vocab) ** 2
        if kind == "zeros":
            weights *= random.permutation(vocab) > 0
        elif kind == "one-hot":
            weights *= random.permutation(vocab) == 0
        return weights / weights.sum()

    return row


def disjoint(target: Rows) -> Rows:
    """Drafts only what the target never says, where there is such a token."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        impossible = target(prefix) == 0
        return impossible / impossible.sum() if impossible.any() else target(prefix)

    return row


def greedy(target: list, draft: list, drafted: tuple[int, ...]) -> Iterator[tuple[float, Branch]]:
    best = np.array([row.argmax() for row in target])
    verdict = accept_greedy(best, Proposal(drafted))
    yield 1.0, (verdict.accepted, np.eye(len(target[0]))[verdict.bonus])


def rejection(
    target: list, draft: list, drafted: tuple[int, ...]
) -> Iterator[tuple[float, Branch]]:
    reached = 1.0
    for i, token in enumerate(drafted):
        (chance,), _, left = try_siblings(target[i], [draft[i]], [token], [1.0])
        if chance < 1:
            yield reached * (1 - chance), (i, left)
        reached *= chance
    yield reached, (len(drafted), target[-1])


def block(target: list, draft: list, drafted: tuple[int, ...]) -> Iterator[tuple[float, Branch]]:
    chances, scales = block_chances(target, draft, drafted)
    none_longer = 1.0
    for i in reversed(range(len(chances))):
        own = target[i] if i == len(drafted) else residual(target[i], draft[i], scales[i])
        yield none_longer * chances[i], (i, own)
        none_longer *= 1 - chances[i]


def emitted(target: Rows, draft: Rows, rule: Rule, k: int, horizon: int, vocab: int) -> dict:
    """The probability of every text of ``horizon`` tokens, over all drafts and decisions."""
    total: dict[tuple[int, ...], float] = defaultdict(float)
    pending = {(): 1.0}
    while pending:
        prefix = min(pending, key=len)
        chance = pending.pop(prefix)
        if len(prefix) >= horizon:
            total[prefix[:horizon]] += chance
            continue
        for drafted in itertools.product(range(vocab), repeat=k):
            prefixes = [prefix + drafted[:i] for i in range(k + 1)]
            drawn_from = [draft(p) for p in prefixes[:-1]]
            drawn = chance * np.prod(
                [row[token] for row, token in zip(drawn_from, drafted, strict=True)]
            )
            if not drawn:
                continue
            for taken, (accepted, own) in rule([target(p) for p in prefixes], drawn_from, drafted):
                if not taken:
                    continue
                for token, weight in enumerate(own / own.sum()):
                    text = (*prefixes[accepted], token)
                    if weight:
                        pending[text] = pending.get(text, 0.0) + drawn * taken * weight
    return total


def spoken(target: Rows, horizon: int, vocab: int) -> dict:
    return {
        text: np.prod([target(text[:i])[token] for i, token in enumerate(text)])
        for text in itertools.product(range(vocab), repeat=horizon)
    }


@pytest.mark.parametrize("rule", [rejection, block])
@pytest.mark.parametrize(
    ("vocab", "horizon", "k"),
    [(2, 4, 1), (2, 4, 2), (2, 3, 3), (2, 3, 4), (3, 3, 1), (3, 3, 2), (4, 3, 2)],
)
@pytest.mark.parametrize("drafts", ["dense", "zeros", "one-hot", "equal", "disjoint"])
@pytest.mark.parametrize("says", ["dense", "zeros"])
def test_the_emitted_text_is_the_targets(
    rule: Rule, vocab: int, horizon: int, k: int, drafts: str, says: str
) -> None:
    for seed in range(3):
        target = language(seed, vocab, says)
        draft = {"equal": target, "disjoint": disjoint(target)}.get(
            drafts, language(seed + 100, vocab, drafts)
        )
        found = emitted(target, draft, rule, k, horizon, vocab)
        for text, chance in spoken(target, horizon, vocab).items():
            assert found.get(text, 0.0) == pytest.approx(chance, abs=1e-12), text


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_greedy_text_is_the_targets_best(k: int) -> None:
    for seed in range(5):
        target, draft = language(seed, 3, "dense"), language(seed + 100, 3, "dense")
        best: tuple[int, ...] = ()
        while len(best) < 3:
            best = (*best, int(target(best).argmax()))
        found = emitted(target, draft, greedy, k, 3, 3)
        assert {text: chance for text, chance in found.items() if chance > 1e-15} == {
            best: pytest.approx(1.0, abs=1e-12)
        }


ROWS = st.integers(2, 6).flatmap(
    lambda vocab: st.tuples(st.integers(0, 2**32), st.just(vocab), st.integers(1, 4))
)


@given(ROWS, st.sampled_from(["dense", "zeros", "one-hot"]))
def test_block_never_yields_fewer_tokens_than_rejection(
    how: tuple[int, int, int], kind: str
) -> None:
    """Expected accepted tokens, over all drafts of one round."""
    seed, vocab, k = how
    vocab = min(vocab, 4)
    target, draft = language(seed, vocab, "dense"), language(seed + 1, vocab, kind)
    expected = {rejection: 0.0, block: 0.0}
    for drafted in itertools.product(range(vocab), repeat=k):
        prefixes = [drafted[:i] for i in range(k + 1)]
        drawn_from = [draft(p) for p in prefixes[:-1]]
        drawn = np.prod([row[token] for row, token in zip(drawn_from, drafted, strict=True)])
        if drawn:
            for rule in expected:
                for taken, (accepted, _) in rule(
                    [target(p) for p in prefixes], drawn_from, drafted
                ):
                    expected[rule] += drawn * taken * accepted
    assert expected[block] >= expected[rejection] - 1e-12


# --- the coupled rule: a function of row and noise ------------------------------------------------


@given(st.integers(0, 2**32), st.integers(2, 50))
def test_a_race_is_won_by_the_largest_weight_over_noise(seed: int, size: int) -> None:
    random = np.random.default_rng(seed)
    weights = random.exponential(size=size) * (random.random(size) < 0.7)
    weights[random.integers(size)] = 1.0
    noise = random.exponential(size=size)
    winner = race(weights, noise)
    assert weights[winner] > 0
    assert weights[winner] / noise[winner] == (weights / noise).max()
    scale = float(random.exponential())
    assert race(scale * weights, noise) == winner or np.isclose(
        *np.sort(weights / noise)[-2:], rtol=1e-12
    )


def test_no_noise_at_all_wins_unless_it_cannot() -> None:
    assert race(np.array([0.0, 1.0, 2.0]), np.array([0.0, 0.0, 1.0])) == 1
    assert race(np.array([0.0, 1.0]), np.array([0.0, 5.0])) == 1


@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(1e-6, 50))
def test_law_for_two_tokens_in_closed_form(a: float, b: float, first: float) -> None:
    """Given the first's noise e, the first wins if the second's is above e b/a: exp(-e b/a)."""
    bound = first * b / a
    assert race(np.array([a, b]), np.array([first, bound * (1 + 1e-9)])) == 0
    assert race(np.array([a, b]), np.array([first, bound * (1 - 1e-9)])) == 1
    # Integrated over e that is a / (a + b): Gauss and Laguerre's rule in e (1 + b/a).
    nodes, shares = np.polynomial.laguerre.laggauss(40)
    wins = (shares * np.ones_like(nodes)).sum() / (1 + b / a)
    assert wins == pytest.approx(a / (a + b), rel=1e-9)


def test_law_of_many_races() -> None:
    """Chi-squared of 400,000; above 27.9 in one of two thousand runs of a right rule."""
    random = np.random.default_rng(7)
    weights = np.array([1.0, 5.0, 0.0, 2.0, 0.5, 7.0, 1e-3, 3.0, 0.1, 4.0])
    noise = random.exponential(size=(400_000, len(weights)))
    with np.errstate(divide="ignore"):
        winners = (noise / weights).argmin(axis=1)
    for row, winner in zip(noise[:2000], winners[:2000], strict=True):
        assert race(weights, row) == winner
    counts = np.bincount(winners, minlength=len(weights))
    expected = weights / weights.sum() * len(noise)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert ((counts - expected)[possible] ** 2 / expected[possible]).sum() < 27.9
