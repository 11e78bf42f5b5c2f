"""Guesses merged into one tree, whose nodes are spent where they are likeliest to be reached."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from specplug.arguments import checked
from specplug.budget import Budget
from specplug.drafters.chances import Chances
from specplug.drafters.source import ANY, Guess, Source
from specplug.sampling import NoDraftError
from specplug.types import (
    Drafter,
    Float64Array,
    Int64Array,
    Outcome,
    Proposal,
    Request,
    Scores,
)

_SURE = 0.9  # chance of a guess that makes asking further sources a waste
_ROOT = -1


@dataclass(slots=True)
class SourceCount:
    """What became of a source's guesses in one generation."""

    drafted: int = 0
    accepted: int = 0
    expected: float = 0.0
    """Tokens that were to be accepted by the learnt chances."""


class TreeDrafter(Drafter):
    """Drafts the likeliest tokens of all that its sources guess.

    A token's chance of being reached is the product of the chances on its path, each learnt by
    source and kind of guess. Nodes are taken in the order of these, for as long as the next one is
    worth its cost. Where the budget allows no branches, each token is followed by the likeliest
    guess alone.

    Args:
        name: what statistics call it.
        sources: free ones before costly ones, those that are sure more often first.
    """

    @checked()
    def __init__(self, name: str, sources: Sequence[Source]) -> None:
        self.name = name
        self.sources = sources
        self._chances = [Chances(source.prior) for source in sources]
        self._asked: dict[int, list[tuple[int, bool, Sequence[Guess]]]] = {}
        self._drafted: list[tuple[int, float]] = []
        self._spoilt = False  # a source's call went wrong
        self.counts: dict[str, SourceCount] = {}
        """By source, of the running or latest generation."""

    def propose(self, context: Int64Array, budget: Budget) -> Proposal:
        """The tree, or chain; empty if nothing is worth it."""
        places = [source.begin(context) for source in self.sources]
        growing = _Growing(self.sources, self._chances, budget, places)
        self._asked = growing.asked
        self._spoilt = True  # unless this ends well
        try:
            proposal = growing.grow()
        except NoDraftError:
            self._spoilt = False
            raise
        self._spoilt = False
        self._drafted = growing.drafted
        self.reading_seconds = sum(source.reading_seconds for source in self.sources)
        return proposal

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """Tell the sources."""
        for source in self.sources:
            source.observe(past, tokens, scores)

    def commit(self, outcome: Outcome) -> None:
        """Learn from every guess at a node that was reached, drafted or not."""
        for node, token in zip((_ROOT, *outcome.verdict.path), outcome.tokens, strict=False):
            for which, costly, guesses in self._asked.get(node, ()):
                chances = self._chances[which]
                for guess in guesses:
                    chances.learn(guess.kind, guess.token == token)
                if costly:
                    chances.learn(ANY, guesses[0].token == token)
        for node, (which, reach) in enumerate(self._drafted[: len(outcome.proposal)]):
            count = self.counts.setdefault(self.sources[which].name, SourceCount())
            count.drafted += 1
            count.expected += reach
            count.accepted += node in outcome.verdict.path
        self._asked, self._drafted = {}, []
        for source in self.sources:
            source.commit(outcome)

    def reset(self, request: Request) -> None:
        """The next proposal is for a new sequence; what its tenant's texts taught stays."""
        self._asked, self._drafted, self.counts = {}, [], {}
        for source, chances in zip(self.sources, self._chances, strict=True):
            source.reset(request)
            if self._spoilt:  # what a failed call left, NaN perhaps, would spoil the next ones
                source.clear()
            chances.begin(request.tenant)
        self._spoilt = False

    def finish(self, request: Request, tokens: Int64Array) -> None:
        """Tell the sources."""
        for source in self.sources:
            source.finish(request, tokens)

    def fork(self) -> TreeDrafter:
        """Over forks of the sources."""
        other = TreeDrafter(self.name, [source.fork() for source in self.sources])
        other._chances = [chances.fork() for chances in self._chances]
        return other

    def close(self) -> None:
        """Close the sources."""
        for source in self.sources:
            source.close()


class _Growing:
    """A tree while it grows."""

    def __init__(
        self,
        sources: Sequence[Source],
        chances: Sequence[Chances],
        budget: Budget,
        places: list[Any],
    ) -> None:
        self._sources, self._chances, self._budget = sources, chances, budget
        self._places = {_ROOT: places}
        self.asked: dict[int, list[tuple[int, bool, Sequence[Guess]]]] = {}
        """By node: the number of each source, whether it was costly to ask, what it guessed."""
        self.drafted: list[tuple[int, float]] = []
        """The number of the source and the reach of each node."""
        # -reach, age, parent, number of the source, guess
        self._frontier: list[tuple[float, int, int, int, Guess]] = []
        self._age = 0

    def grow(self) -> Proposal:
        budget = self._budget
        tokens: list[int] = []
        parents: list[int] = []
        drawn: list[Float64Array | None] = []
        self._ask(_ROOT, 1.0, 0)
        while self._frontier:
            negative, _, parent, which, guess = heapq.heappop(self._frontier)
            node = len(tokens)
            if not budget.pays(node, -negative):
                break
            tokens.append(guess.token)
            parents.append(parent)
            self.drafted.append((which, -negative))
            drawn.append(guess.drawn_from)
            if node + 1 < budget.most:
                self._places[node] = [
                    place if place is None else source.step(place, guess.token)
                    for source, place in zip(self._sources, self._places[parent], strict=True)
                ]
                self._ask(node, -negative, node + 1)
        size = budget.size([reach for _, reach in self.drafted])
        rows = drawn[:size] if any(row is not None for row in drawn) else None
        reaches = tuple(reach for _, reach in self.drafted[:size])
        return Proposal(tuple(tokens[:size]), rows, tuple(parents[:size]), reaches)

    def _ask(self, node: int, reach: float, drafted: int) -> None:
        """Put what may follow a node on the frontier."""
        asked = self.asked[node] = []
        best: dict[int, tuple[float, int, Guess]] = {}
        surest = 0.0
        for which, (source, place) in enumerate(
            zip(self._sources, self._places[node], strict=True)
        ):
            if place is None:
                continue
            cost = source.seconds
            if cost and not self._budget.pays(
                drafted, reach * (self._chances[which][ANY] - surest), cost
            ):
                continue
            guesses = source.guesses(place)
            if not guesses:
                continue
            asked.append((which, cost > 0, guesses))
            chances = self._chances[which]
            for guess in guesses:
                chance = chances[guess.kind]
                known = best.get(guess.token)
                if known is None or chance > known[0]:
                    best[guess.token] = chance, which, guess
                    surest = max(surest, chance)
            if surest > _SURE:
                break
        if not best:
            return
        if not self._budget.branching:
            chosen = max(best.values(), key=lambda found: found[0])
            self._push(node, reach * chosen[0], *chosen[1:])
            return
        left = 1.0
        for chance, which, guess in sorted(best.values(), key=lambda found: -found[0]):
            # Siblings exclude one another, which chances learnt apart do not know.
            self._push(node, reach * min(chance, left), which, guess)
            left = max(left - chance, 0.05)

    def _push(self, parent: int, reach: float, which: int, guess: Guess) -> None:
        self._age += 1
        heapq.heappush(self._frontier, (-reach, self._age, parent, which, guess))
