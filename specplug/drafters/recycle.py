"""Token recycling (arXiv:2408.08696): what the target last thought likely after a token."""

from __future__ import annotations

from specplug.drafters.chances import Kind
from specplug.drafters.source import Guess, Source
from specplug.tenants import Recent, Tables
from specplug.types import NO_TOKEN, Int32Array, Int64Array, Outcome, Request

KEPT = 4
"""Continuations of a token that are guessed."""

DEFAULT_TOKENS = 1 << 17
"""Whose continuations are kept, of all tenants together; one takes about 400 bytes."""

_PRIOR = (0.3, 0.12, 0.07, 0.05)  # by rank
_SEEN_TWICE = 2
_NEVER: tuple[int, list[int]] = (0, [])


class RecycleSource(Source):
    """The target's own choice after each token, the latest first.

    The rows of a call judge tokens that were drafted and not accepted, too: what the target would
    have said after them costs nothing more to know. The table outlives a request, and
    is the tenant's own.

    Args:
        warm: what to guess after tokens that were not met yet, i32[V, n], likeliest first, padded
            with -1.
        most_tokens: whose continuations are kept at most, of all tenants together.
    """

    name = "recycle"

    def __init__(self, warm: Int32Array | None = None, most_tokens: int = DEFAULT_TOKENS) -> None:
        self._warm = warm
        # By token: how often it was met, and what followed, the latest first.
        self._tables: Tables[int, tuple[int, list[int]]] = Tables(most_tokens)
        self._table: Recent[int, tuple[int, list[int]]] = Recent(most_tokens)  # of nobody yet

    def reset(self, request: Request) -> None:
        """Go on with the request's tenant's table."""
        self._table = self._tables.of(request.tenant)

    def fork(self) -> RecycleSource:
        """Over the same tables."""
        other = RecycleSource(self._warm)
        other._tables, other._table = self._tables, self._table
        return other

    def begin(self, context: Int64Array) -> int:
        """A place is a token."""
        return int(context[-1])

    def step(self, place: int, token: int) -> int:
        """The token itself."""
        return token

    def guesses(self, place: int) -> list[Guess]:
        """What followed, of kind (rank, how often the token was met)."""
        times, seen = self._table.get(place, _NEVER)
        times = min(times, _SEEN_TWICE)
        found = [Guess(token, (rank, times)) for rank, token in enumerate(seen)]
        if self._warm is not None and len(found) < KEPT and place < len(self._warm):
            more = [t for t in self._warm[place].tolist() if t >= 0 and t not in seen]
            found += [
                Guess(token, (rank, 0))
                for rank, token in enumerate(more[: KEPT - len(found)], start=len(found))
            ]
        return found

    def prior(self, kind: Kind) -> float:
        """A guess in four, about, if it was met."""
        assert isinstance(kind, tuple)
        rank, times = kind
        return _PRIOR[rank] * (1.0 if times else 0.5)

    def commit(self, outcome: Outcome) -> None:
        """Note the target's choice after every token that it judged."""
        best = outcome.scores.argmax()[0].tolist()
        for token, choice in zip(outcome.judged, best, strict=False):
            if choice == NO_TOKEN:
                continue
            times, seen = self._table.get(token, _NEVER)
            others = [one for one in seen if one != choice]
            self._table[token] = times + 1, [choice, *others][:KEPT]
