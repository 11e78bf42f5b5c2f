"""Token recycling (arXiv:2408.08696): what the target last thought likely after a token."""

from __future__ import annotations

from specplug.drafters.chances import Kind
from specplug.drafters.source import Guess, Source
from specplug.types import NO_TOKEN, Int32Array, Int64Array, Outcome

KEPT = 4
"""Continuations of a token that are guessed."""

_PRIOR = (0.3, 0.12, 0.07, 0.05)  # by rank
_SEEN_TWICE = 2


class RecycleSource(Source):
    """The target's own choice after each token, the latest first.

    The rows of a call judge tokens that were drafted and not accepted, too: what the target would
    have said after them costs nothing more to know. The table outlives a request.

    Args:
        warm: what to guess after tokens that were not met yet, i32[V, n], likeliest first, padded
            with -1.
    """

    name = "recycle"

    def __init__(self, warm: Int32Array | None = None) -> None:
        self._warm = warm
        self._seen: dict[int, list[int]] = {}
        self._times: dict[int, int] = {}

    def fork(self) -> RecycleSource:
        """Over the same table."""
        other = RecycleSource(self._warm)
        other._seen, other._times = self._seen, self._times
        return other

    def begin(self, context: Int64Array) -> int:
        """A place is a token."""
        return int(context[-1])

    def step(self, place: int, token: int) -> int:
        """The token itself."""
        return token

    def guesses(self, place: int) -> list[Guess]:
        """What followed, of kind (rank, how often the token was met)."""
        seen = self._seen.get(place, ())
        times = min(self._times.get(place, 0), _SEEN_TWICE)
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
            seen = self._seen.setdefault(token, [])
            self._times[token] = self._times.get(token, 0) + 1
            if not seen or seen[0] != choice:
                if choice in seen:
                    seen.remove(choice)
                seen.insert(0, choice)
                del seen[KEPT:]
