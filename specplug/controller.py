"""How many tokens to draft: a fixed number, or what measured costs make worth it, none included.

With T(n) the time of a target call of n tokens, a round that drafts k yields one token and the
drafted ones that are reached, in T(k + 1). The long run is fastest when every round makes the most
of (tokens - rate * seconds), where the rate is the one that the long run has: a token is drafted if
its chance of being reached exceeds the rate times what it adds to the call.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from specplug.arguments import checked
from specplug.budget import Budget, Prices

LONGEST = 31
"""Tokens that a round drafts at most when their number is automatic: a call of 32."""

_WIDEST = 4096  # tokens of a call whose cost anybody asks for
_KEPT = 0.96  # of the running rate, a round
_ALLOWANCE = 0.01  # of plain decoding's time may be lost to drafts that do not pay
_CREDIT, _MOST_CREDIT = 1.0, 16.0  # plain tokens' time: to begin with, and saved up at most
_REFRESHED = 8  # rounds between looks at the prices
_PATIENCE, _LONGEST_REST = 8, 16  # rounds
_DRIFT, _OWN_DRIFT, _CLIP = 0.06, 0.04, 1.25  # of costs, a round


class DraftLength(Protocol):
    """Decides what each round may draft, and hears what became of it."""

    @property
    def longest(self) -> int:
        """Tokens that a round may draft at most."""
        ...

    def begin(self, context: int) -> None:
        """A generation begins after so many tokens."""
        ...

    def budget(self, room: int, *, branching: bool) -> Budget | None:
        """Of the next round; None: the drafter is not asked.

        Args:
            room: tokens that may be drafted before the answer is full.
            branching: whether the target can check trees.
        """
        ...

    def observe(self, width: int, seconds: float) -> None:
        """A call of the target over so many tokens a row took so many seconds."""
        ...

    def record(self, drafted: int, tokens: float, draft_seconds: float) -> None:
        """A round gave ``tokens`` for so many drafted ones.

        Args:
            drafted: tokens.
            tokens: that became text.
            draft_seconds: what drafting took.
        """
        ...


class FixedLength:
    """Always the same number."""

    @checked()
    def __init__(self, draft_tokens: int) -> None:
        if draft_tokens < 0:
            raise ValueError(f"draft_tokens {draft_tokens}: need 0 or more")
        self.longest = draft_tokens

    def begin(self, context: int) -> None:
        """Nothing depends on it."""

    def budget(self, room: int, *, branching: bool) -> Budget | None:
        """The number, or what there is room for."""
        most = min(self.longest, room)
        return Budget(most, branching=branching) if most > 0 else None

    def observe(self, width: int, seconds: float) -> None:
        """Nothing to learn."""

    def record(self, drafted: int, tokens: float, draft_seconds: float) -> None:
        """Nothing to learn."""


class CallCosts:
    """Seconds of a target call by width, from measurements, kept up to date by more of them.

    Args:
        measured: seconds by width; between them costs are taken to be straight, beyond them to
            rise as they last did, and nowhere to fall.
        widest: the widest call that is asked for.
    """

    @checked()
    def __init__(self, measured: Mapping[int, float], widest: int = LONGEST + 1) -> None:
        if (
            not measured
            or min(measured) < 1
            or not all(0 < seconds < math.inf for seconds in measured.values())
        ):
            raise ValueError(f"costs {dict(measured)}: need seconds > 0 by width >= 1")
        if not 1 <= widest <= _WIDEST:
            raise ValueError(f"widest {widest}: need 1 to {_WIDEST}")
        knots = sorted(measured)
        seconds = np.interp(np.arange(1, widest + 1), knots, [measured[w] for w in knots])
        if len(knots) > 1 and widest > knots[-1]:
            slope = (measured[knots[-1]] - measured[knots[-2]]) / (knots[-1] - knots[-2])
            seconds[knots[-1] :] += max(slope, 0.0) * np.arange(1, widest - knots[-1] + 1)
        self._seconds: list[float] = np.maximum.accumulate(seconds).tolist()
        self._common = 1.0

    def __getitem__(self, width: int) -> float:
        """Seconds of a call."""
        return self._common * self._seconds[min(width, len(self._seconds)) - 1]

    def observe(self, width: int, seconds: float) -> None:
        """A call took so long. An outlier counts as a quarter more or less, and little at once."""
        if width > len(self._seconds):
            return
        ratio = min(max(seconds / self[width], 1 / _CLIP), _CLIP)
        self._common *= ratio**_DRIFT  # the machine is slower, the context longer, …
        self._seconds[width - 1] *= ratio**_OWN_DRIFT  # … or the measurement was off

    def prices(self, most: int) -> Prices:
        """Of up to ``most`` drafted tokens."""
        seconds = np.maximum.accumulate([self[1 + n] for n in range(most + 1)])
        return Prices((seconds - seconds[0]).tolist())


CostsByContext = Mapping[int, CallCosts]
"""By the cached entries that the calls were measured at."""


class MeasuredLength:
    """What pays, by measured costs and learnt chances; never much slower than drafting nothing.

    What drafts cost beyond what they gave is paid from a credit, which grows by a hundredth of
    plain decoding's time and by what drafts gain: when it is spent, nothing is drafted. So no text,
    however it fools the drafter, takes more than about a hundredth longer than plain decoding. A
    drafter whose proposals were not worth it for a while is asked more and more rarely.

    Args:
        costs: of the target's calls.
        longest: tokens that a round may draft at most.
    """

    @checked()
    def __init__(self, costs: CallCosts | CostsByContext, longest: int = LONGEST) -> None:
        if not isinstance(costs, CallCosts) and not costs:
            raise ValueError("costs: there are none")
        if not 0 <= longest < _WIDEST:
            raise ValueError(f"longest {longest}: need 0 to {_WIDEST - 1}")
        self._by_context = {0: costs} if isinstance(costs, CallCosts) else costs
        self.costs = costs = self._by_context[min(self._by_context)]
        self.longest = longest
        self._prices = costs.prices(longest)
        self._rounds = self._idle = self._rest = 0
        self._asked = False
        self._credit = _CREDIT * costs[1]
        self._tokens = 0.0
        self._seconds = 0.0

    def begin(self, context: int) -> None:
        """A generation begins after so many tokens: costs that were measured nearest count."""
        self.costs = self._by_context[min(self._by_context, key=lambda at: abs(at - context))]
        self._prices = self.costs.prices(self.longest)

    @property
    def rate(self) -> float:
        """Tokens a second of late, at least plain decoding's."""
        plain = 1 / self.costs[1]
        return max(plain, self._tokens / self._seconds) if self._seconds else plain

    def budget(self, room: int, *, branching: bool) -> Budget | None:
        """What the credit allows; None while the drafter rests or there is none."""
        self._asked = False
        self._rounds += 1
        if self._rounds % _REFRESHED == 0:
            self._prices = self.costs.prices(self.longest)
        if self._rest:
            self._rest -= 1
            return None
        most = min(self.longest, room)
        seconds = self._prices.seconds
        while most > 0 and seconds[most] > self._credit:
            most -= 1
        if most <= 0:
            return None
        self._asked = True
        return Budget(most, prices=self._prices, rate=self.rate, branching=branching)

    def observe(self, width: int, seconds: float) -> None:
        """Learn what calls cost: every length over the same costs does."""
        self.costs.observe(width, seconds)

    def record(self, drafted: int, tokens: float, draft_seconds: float) -> None:
        """Balance the credit, at what calls are known to cost."""
        plain = self.costs[1]
        spent = self.costs[1 + drafted] + draft_seconds
        self._tokens = _KEPT * self._tokens + tokens
        self._seconds = _KEPT * self._seconds + spent
        gained = tokens * plain - spent if drafted else -draft_seconds
        self._credit = min(
            self._credit + gained + _ALLOWANCE * tokens * plain, _MOST_CREDIT * plain
        )
        if drafted:
            self._idle = 0
        elif self._asked:
            self._idle += 1
            if self._idle >= _PATIENCE:
                self._rest = min(self._idle - _PATIENCE + 1, _LONGEST_REST)
