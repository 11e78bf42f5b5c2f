"""How often guesses of a kind came true: learnt as they go, never quite certain."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from specplug.tenants import Recent, Tables

Kind = Hashable
"""What a source says of a guess, such as the length of its match: the finer, the slower learnt."""

MOST_KINDS = 1 << 16
"""Of a source's guesses, of all tenants together; one takes about 250 bytes. No source of specplug
has 400 kinds."""

_LONG, _SHORT = 1 / 400, 1 / 24  # forgetting per guess: of all requests, and of this one
_LONG_WEIGHT, _SHORT_WEIGHT = 8.0, 6.0  # guesses that the prior, and the long run, are worth


class Chances:
    """The chance of a guess by its kind, given that what it was a continuation of came true.

    Two running means: the long one begins at the prior and moves slowly, each tenant's by itself;
    the short one begins at the long one with every request and follows the text's character.

    Args:
        prior: of a kind that was never seen, in (0, 1).
    """

    def __init__(self, prior: Callable[[Kind], float]) -> None:
        self._prior = prior
        # By tenant and kind: [hits, guesses], both fading.
        self._tenants: Tables[Kind, list[float]] = Tables(MOST_KINDS)
        self._long: Recent[Kind, list[float]] = Recent(MOST_KINDS)  # of nobody yet
        self._short: dict[Kind, list[float]] = {}

    def __getitem__(self, kind: Kind) -> float:
        """The chance of a guess of this kind, in (0, 1)."""
        hits, guesses = self._long.get(kind) or (0.0, 0.0)
        chance = (hits + _LONG_WEIGHT * self._prior(kind)) / (guesses + _LONG_WEIGHT)
        recent = self._short.get(kind)
        if recent is None:
            return chance
        return (recent[0] + _SHORT_WEIGHT * chance) / (recent[1] + _SHORT_WEIGHT)

    def learn(self, kind: Kind, came_true: bool) -> None:
        """A guess of this kind was judged."""
        for counts, forgetting in ((self._long, _LONG), (self._short, _SHORT)):
            known = counts.get(kind)
            if known is None:
                known = counts[kind] = [0.0, 0.0]
            hits, guesses = known
            known[0] = hits + came_true - forgetting * hits
            known[1] = guesses + 1 - forgetting * guesses

    def fork(self) -> Chances:
        """For another text at the same time: a tenant's long run is one."""
        other = Chances(self._prior)
        other._tenants, other._long = self._tenants, self._long
        return other

    def begin(self, tenant: str = "") -> None:
        """A new request of a tenant: its text may be of another character."""
        self._long = self._tenants.of(tenant)
        self._short.clear()
