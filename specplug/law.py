"""Whether what the loop samples has the target's distribution: chi-squared on two tokens.

The rows are the engine's own, computed once each and remembered, so that thousands of sequences
take the time of a few hundred calls; everything after the rows is the loop as it always runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from specplug.decoder import SpeculativeDecoder
from specplug.drafters import ModelDrafter
from specplug.engines.fake import FakeEngine
from specplug.feeding import feed
from specplug.logit_rules import LogitRules
from specplug.sampling import SamplingParams, distribution
from specplug.types import Engine, Float32Array, Float64Array, Int64Array

SIGNIFICANCE = 1e-4
"""A right loop fails one run in ten thousand."""
POWER = 0.99

_DRAFTED = 2  # tokens a round; the outcome is as many
_FIRST_TOKENS = 32  # of the outcome, told apart; the others are one bin
_FEWEST = 5.0  # expected in a bin
_SIMULATED = 50_000
_FLATTER = np.float32(0.6)

Pair = tuple[int, int]
Rows = Callable[[tuple[int, ...]], Float32Array]


@dataclass(frozen=True, slots=True)
class Law:
    """The outcome of the test."""

    sequences: int
    bins: int
    statistic: float
    p_value: float
    detectable: float
    """The total-variation error that a run finds with probability :data:`POWER`."""
    impossible: Pair | None
    """A pair that was sampled and that the target never gives."""

    @property
    def passed(self) -> bool:
        """Whether there is no reason to doubt the distribution."""
        return self.impossible is None and self.p_value >= SIGNIFICANCE


class RememberedRows:
    """An engine's logits by the tokens after a fixed context, each computed once.

    Args:
        engine: its cache is taken over.
        context: the tokens that come first.
    """

    def __init__(self, engine: Engine, context: Sequence[int]) -> None:
        self._engine = engine
        self._context = tuple(context)
        self._rows: dict[tuple[int, ...], Float32Array] = {}

    def __call__(self, key: tuple[int, ...]) -> Float32Array:
        """The logits after the context and ``key``, f32[V]."""
        if key not in self._rows:
            past = len(self._context) - 1 if self._rows else 0
            tokens = [*self._context, *key][past:]
            self._rows[key] = feed(self._engine, tokens, past=past, scored=1).logits()[0, 0].copy()
        return self._rows[key]


def check_law(
    target: Engine,
    draft: Engine | None,
    context: Sequence[int],
    params: SamplingParams,
    *,
    sequences: int,
    report: Callable[[float], None] = lambda done: None,
) -> Law:
    """Sample two tokens after ``context`` many times, and compare with the target's rows.

    Args:
        target: the engine whose distribution is wanted.
        draft: what proposes; None: the target's own rows, flattened.
        context: token ids, at least two.
        params: temperature above 0; each sequence is a sample of its seed.
        sequences: how many.
        report: told the share that is done.
    """
    rows = RememberedRows(target, context)
    expected = _Expected(rows, list(context), params)
    proposing = RememberedRows(draft, context) if draft else lambda key: rows(key) * _FLATTER

    def engine(rows: Rows, vocab_size: int) -> FakeEngine:
        def row(prefix: tuple[int, ...]) -> Float32Array:
            key = prefix[len(context) :]
            if len(prefix) >= len(context) and (not key or key in expected.told_apart):
                return rows(key)
            # The last token of the context, or one that no outcome depends on.
            certain = np.full(vocab_size, -np.inf, dtype=np.float32)
            certain[context[-1]] = 0
            return certain

        return FakeEngine(row, vocab_size=vocab_size)

    decoder = SpeculativeDecoder(
        engine(rows, target.spec.vocab_size),
        drafter=ModelDrafter(engine(proposing, (draft or target).spec.vocab_size)),
        draft_tokens=_DRAFTED,
    )
    prompt = list(context[:-1])
    counts: Counter[Pair] = Counter()
    for sample in range(sequences):
        made = decoder.generate(prompt, max_tokens=_DRAFTED + 2, sampling=params, sample=sample)
        _, first, second, _ = made.token_ids
        counts[first, second] += 1
        report((sample + 1) / sequences)
    return _compare(counts, expected, sequences)


class _Expected:
    """The probabilities of the first token, and of the second after some of the first."""

    def __init__(self, rows: Rows, context: list[int], params: SamplingParams) -> None:
        rules = LogitRules(params)

        def after(key: tuple[int, ...]) -> Float64Array:
            history: Int64Array = np.array([*context, *key], dtype=np.int64)
            shaped = rules.shape(rows(key), history, len(context) - 1)
            return distribution(shaped, params).probabilities()

        self.first = after(())
        likeliest = np.argsort(-self.first, kind="stable")[:_FIRST_TOKENS]
        self.second = {int(t): after((int(t),)) for t in likeliest if self.first[t] > 0}
        self.told_apart = {(token,) for token in self.second}

    def impossible(self, pairs: Iterator[Pair]) -> Pair | None:
        for first, second in pairs:
            if self.first[first] == 0 or (first in self.second and self.second[first][second] == 0):
                return first, second
        return None

    def common(self, least: float) -> dict[Pair, float]:
        """The pairs of at least this probability."""
        return {
            (first, int(second)): float(self.first[first] * row[second])
            for first, row in self.second.items()
            for second in np.flatnonzero(self.first[first] * row >= least)
        }


def _compare(counts: Counter[Pair], expected: _Expected, sequences: int) -> Law:
    common = expected.common(_FEWEST / sequences)
    shares = [*common.values()]
    found = [counts[pair] for pair in common]
    rest = max(1.0 - sum(shares), 0.0)
    if rest * sequences >= _FEWEST or not shares:
        shares.append(rest)
        found.append(sequences - sum(found))
    wanted = np.array(shares) / sum(shares)
    total = sum(found)
    statistic = _chi_squared(np.array([found]), wanted, total)[0]
    random = np.random.default_rng(0)
    null = _chi_squared(random.multinomial(total, wanted, _SIMULATED), wanted, total)
    # A statistic of simulated right runs is as large up to rounding: hence not ">".
    p_value = float((1 + np.count_nonzero(null >= statistic * (1 - 1e-12))) / (1 + _SIMULATED))
    return Law(
        sequences=sequences,
        bins=len(wanted),
        statistic=float(statistic),
        p_value=p_value,
        detectable=_detectable(len(wanted) - 1, total, float(np.quantile(null, 1 - SIGNIFICANCE))),
        impossible=expected.impossible(iter(counts)),
    )


def _chi_squared(found: Int64Array, wanted: Float64Array, total: int) -> Float64Array:
    values: Float64Array = ((found - total * wanted) ** 2 / (total * wanted)).sum(axis=1)
    return values


def _detectable(freedom: int, total: int, critical: float) -> float:
    """The smallest error that is found with :data:`POWER`, were it spread as the law itself is.

    That is the hardest to find of all errors of its size: chi-squared is then non-central by
    total * (2 * error)**2.
    """
    if freedom == 0:
        return 1.0
    random = np.random.default_rng(1)
    low, high = 0.0, 1.0
    for _ in range(12):
        error = (low + high) / 2
        found = random.noncentral_chisquare(freedom, total * (2 * error) ** 2, _SIMULATED)
        if (found > critical).mean() >= POWER:
            high = error
        else:
            low = error
    return high
