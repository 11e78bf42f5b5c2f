"""What a round may draft, and what a drafted token has to be worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from specplug.arguments import check_types


class Prices:
    """What drafting costs the target's call.

    Args:
        seconds: what n drafted tokens add to a call without, n = 0, 1, …
    """

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds = tuple(seconds)
        most = len(self.seconds) - 1
        self.marginal = [
            min((self.seconds[m] - self.seconds[n]) / (m - n) for m in range(n + 1, most + 1))
            for n in range(most)
        ]
        """What one token more than n costs, the best number of further ones taken."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Of one round. The plain form, ``Budget(k)``, is for k tokens, whatever they are worth."""

    most: int
    """Tokens to draft at most, at least 1."""
    prices: Prices | None = field(default=None, kw_only=True)
    """Of ``most`` tokens at least; None: they cost nothing."""
    rate: float = field(default=0.0, kw_only=True)
    """Tokens that a second is worth."""
    branching: bool = field(default=False, kw_only=True)
    """Whether several tokens may follow one."""

    def __post_init__(self) -> None:
        if type(self.most) is not int:  # the loop makes one a round
            check_types(self)
        if self.most < 1:
            raise ValueError(f"most {self.most}: need at least 1")

    def pays(self, drafted: int, reach: float, seconds: float = 0.0) -> bool:
        """Whether one more token is worth its cost.

        Args:
            drafted: tokens so far.
            reach: the chance that the next one is accepted.
            seconds: what finding it costs.
        """
        if drafted >= self.most:
            return False
        if self.prices is None:
            return True
        return reach > self.rate * (self.prices.marginal[drafted] + seconds)

    def size(self, reaches: Sequence[float]) -> int:
        """How many of the tokens, taken in order, give the most tokens for the time they take.

        Args:
            reaches: the chance of each that it is accepted.
        """
        if self.prices is None:
            return min(len(reaches), self.most)
        best, chosen, gain = 0.0, 0, 0.0
        for drafted, reach in enumerate(reaches[: self.most], start=1):
            gain += reach
            worth = gain - self.rate * self.prices.seconds[drafted]
            if worth > best:
                best, chosen = worth, drafted
        return chosen
