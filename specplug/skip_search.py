"""Which of the target's layers a draft should have: a search by what rounds with it would yield.

Sets of layers are judged by somebody else, over texts that the target wrote; here are the order in
which they are tried, and what their guesses are worth. Layers are taken out one after another, of
several sets at a time those whose lack does least harm; then the best set is improved by exchanging
layers. Draft & Verify (arXiv:2309.08168) and SWIFT (arXiv:2410.06916) search the same space, by
Bayesian optimization and at random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Protocol

import numpy as np

LONGEST = 5
"""Tokens that a round may draft at most when sets of layers are compared."""

SECONDS = 120.0
"""Of a search, unless others are asked for."""
MAX_TOKENS = 64
"""Of the answers that sets are judged by, likewise."""

_BEAM = 2  # sets that layers are taken out of at a time
_TRIED = 4  # layers of each, the least harmful as known so far
_FEW = 8  # layers of a model all of which are tried every time

Layers = tuple[int, ...]
"""Those that are kept, ascending."""


@dataclass(frozen=True, slots=True)
class Runs:
    """How far guesses were right, counted at some places of a text."""

    tested: tuple[int, ...]
    """Places whose first i guesses were right and are followed by more text, i = 0, 1, …"""
    right: tuple[int, ...]
    """Those of them whose next guess was right, too."""

    @property
    def chances(self) -> list[float]:
        """Of the i-th drafted token, given that those before it were right."""
        return [r / t if t else 0.0 for r, t in zip(self.right, self.tested, strict=True)]

    @property
    def reaches(self) -> list[float]:
        """The chance that the first i drafted tokens are right, i = 1, 2, …"""
        return list(accumulate(self.chances, mul))

    @property
    def tokens(self) -> float:
        """Of a round, if it drafts as many as were judged."""
        return 1 + sum(self.reaches)


class Seconds(Protocol):
    """Of a call by its width."""

    def __getitem__(self, width: int) -> float: ...


@dataclass(frozen=True, slots=True)
class RoundCosts:
    """What rounds take, as measured."""

    target: Seconds
    base: float
    """Seconds of a draft's call without any layer."""
    layer: float
    """Seconds that each layer adds to it."""

    @classmethod
    def of(cls, target: Seconds, layers: int, half: int, half_seconds: float) -> RoundCosts:
        """From a call of the target, with all its layers, and one of a draft with some.

        A machine that was busy for a while may have made the draft's the dearer one: layers are
        then taken to cost nothing, and none is left out for its time.
        """
        layer = max(target[1] - half_seconds, 0.0) / (layers - half)
        return cls(target, max(half_seconds - half * layer, 0.0), layer)

    @property
    def plain(self) -> float:
        """Tokens a second of plain decoding."""
        return 1 / self.target[1]

    def draft(self, layers: int) -> float:
        """Seconds of a draft's call."""
        return self.base + layers * self.layer

    def speed(self, reaches: Sequence[float], draft_seconds: float) -> tuple[float, int]:
        """Tokens a second of rounds that draft the best number of tokens, and that number.

        A round that drafts k yields 1 + the chances that the first 1, …, k are right, and takes
        a target's call of k + 1 and k calls of the draft.
        """
        tokens = [1.0, *accumulate(reaches, initial=1.0)][1:]
        return max(
            (tokens[k] / (self.target[k + 1] + k * draft_seconds), k)
            for k in range(1, len(reaches) + 1)
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of layers that was judged."""

    layers: Layers
    runs: Runs
    tokens_per_second: float
    draft_tokens: int
    """What a round has to draft for that."""

    @property
    def merit(self) -> tuple[float, int, Layers]:
        """To compare by; of equals, the one of fewer layers."""
        return self.tokens_per_second, -len(self.layers), self.layers


@dataclass(frozen=True, slots=True)
class Found:
    """What a search came to."""

    best: Candidate
    tried: int
    finished: bool
    """Whether it ended before its time: nothing near the best set is better."""


Judge = Callable[[Layers], Runs]
Report = Callable[[int, Candidate, float], None]
"""Told the number of sets that were tried, the best one, and the seconds that are left."""


def search_layers(
    layers: int,
    judge: Judge,
    costs: RoundCosts,
    *,
    seconds: float,
    seed: int = 0,
    report: Report = lambda tried, best, left: None,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Find layers of a target to draft with.

    The same seed tries the same sets in the same order, but for what differs in the measured costs
    and for where the time ends.

    Args:
        layers: how many the target has, at least 2.
        judge: counts what a draft with some layers would have guessed right.
        costs: of a round.
        seconds: to search; one set is judged in any case.
        seed: of the order in which sets of equal promise are tried.
        report: told after every set.
        clock: seconds that pass.
    """
    if layers < 2:
        raise ValueError(f"a model of {layers} layer: to skip some it needs two at least")
    search = _Search(layers, judge, costs, seed)
    deadline = clock() + seconds
    for _ in search.steps():
        report(search.tried, search.best, max(deadline - clock(), 0.0))
        if clock() >= deadline:
            return Found(search.best, search.tried, finished=False)
    return Found(search.best, search.tried, finished=True)


class _Search:
    """The order in which sets are judged, one a step."""

    def __init__(self, layers: int, judge: Judge, costs: RoundCosts, seed: int) -> None:
        self._all = tuple(range(layers))
        self._judge, self._costs = judge, costs
        self._random = np.random.default_rng(seed)
        self._known: dict[Layers, Candidate] = {}
        self._harm = dict.fromkeys(self._all, 0.0)  # tokens a round, as last seen
        self._best: Candidate | None = None

    @property
    def best(self) -> Candidate:
        """Of all that were judged."""
        assert self._best is not None
        return self._best

    @property
    def tried(self) -> int:
        """Sets that were judged."""
        return len(self._known)

    def steps(self) -> Iterator[None]:
        """Judge one set after another."""
        yield from self._fewer()
        yield from self._exchanged()

    def _fewer(self) -> Iterator[None]:
        beam = [self._all]
        whole = float(LONGEST + 1)
        while len(beam[0]) > 1:
            found: dict[Layers, Candidate] = {}
            for kept in beam:
                before = self._known[kept].runs.tokens if kept in self._known else whole
                for layer in self._least_harmful(kept):
                    fewer = tuple(each for each in kept if each != layer)
                    if fewer not in self._known:
                        self._learn(fewer)
                        yield
                    found[fewer] = self._known[fewer]
                    self._harm[layer] = before - found[fewer].runs.tokens
            ranked = sorted(
                found.values(), key=lambda each: (each.runs.tokens, each.layers), reverse=True
            )
            beam = [each.layers for each in ranked[:_BEAM]]
            # Fewer layers guess no better, so that even for nothing they would not do.
            hoped, _ = self._costs.speed(ranked[0].runs.reaches, self._costs.draft(1))
            if hoped < self.best.tokens_per_second:
                return

    def _least_harmful(self, kept: Layers) -> list[int]:
        layers = [int(layer) for layer in self._random.permutation(kept)]
        if len(kept) == len(self._all) or len(self._all) <= _FEW:
            return layers
        return sorted(layers, key=lambda layer: self._harm[layer])[:_TRIED]

    def _exchanged(self) -> Iterator[None]:
        """Sets that differ from the best one by a layer more, one less, or another one."""
        start: Layers | None = None
        while start != self.best.layers:
            start = self.best.layers
            near = self._near(start)
            for index in self._random.permutation(len(near)):
                if near[index] in self._known:
                    continue
                self._learn(near[index])
                yield
                if self.best.layers != start:
                    break

    def _near(self, kept: Layers) -> list[Layers]:
        skipped = [layer for layer in self._all if layer not in kept]
        fewer = [{*kept} - {out} for out in kept] if len(kept) > 1 else []
        more = [{*kept} | {back} for back in skipped] if len(skipped) > 1 else []
        other = [({*kept} - {out}) | {back} for out in kept for back in skipped]
        return [tuple(sorted(each)) for each in (*fewer, *more, *other)]

    def _learn(self, layers: Layers) -> None:
        runs = self._judge(layers)
        speed, draft_tokens = self._costs.speed(runs.reaches, self._costs.draft(len(layers)))
        made = self._known[layers] = Candidate(layers, runs, speed, draft_tokens)
        if self._best is None or made.merit > self._best.merit:
            self._best = made
