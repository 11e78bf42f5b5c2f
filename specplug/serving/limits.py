"""How much may be asked at a time, and how long to stay away when it is too much."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from specplug.serving.errors import ApiError

_LONGEST = 60  # seconds that anyone is told to stay away
_NEWEST = 0.1  # weight of the newest request in the mean of how long they take


class Admission:
    """Counts the answers that run or wait, each of which has a place, by the key that asked.

    A key is refused for two reasons: it has its own share already, or all places are taken. The
    second never holds for a key without any place, so that nobody is locked out by others; as many
    answers as such keys ask for may be there beyond the places.

    Args:
        batch: answers that are made at a time.
        waiting: answers that may wait beside these.
        per_owner: places of one key; None: half of them, rounded up, if there are keys.
        keyed: whether there are keys.
    """

    def __init__(
        self, batch: int, waiting: int, per_owner: int | None, *, keyed: bool = False
    ) -> None:
        self._places = batch + waiting
        if per_owner is None and keyed:
            per_owner = -(-self._places // 2)
        self._per_owner = per_owner
        self._owners: Counter[str] = Counter()
        self._seconds: dict[str, float] = {}  # a request of each key takes, lately
        self.taken = 0
        """Places."""

    @property
    def most(self) -> int:
        """Answers that a request can ask for at all."""
        return self._places if self._per_owner is None else min(self._places, self._per_owner)

    @contextmanager
    def enter(self, owner: str, answers: int) -> Iterator[None]:
        """Hold places for a request; one that is free lets in all its answers.

        Who asks for several would otherwise find no place for as long as others, who need one,
        take each that becomes free.

        Args:
            owner: the key's; without keys everybody is one.
            answers: at most :attr:`most`.

        Raises:
            ApiError: status 429: there is no place, or its owner has its share.
        """
        own = self._owners[owner]
        if self._per_owner is not None and own + answers > self._per_owner:
            raise ApiError(
                429,
                f"this key has {own} answers running or waiting, and may have {self._per_owner}: "
                f"{answers} more are too many",
                retry_after=self._retry_after(owner, own + answers - self._per_owner),
            )
        if self.taken >= self._places and own:
            raise ApiError(
                429,
                "too many requests are waiting",
                retry_after=self._retry_after(None, self.taken - self._places + 1),
            )
        self.taken += answers
        self._owners[owner] += answers
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = time.monotonic() - began
            mean = self._seconds.get(owner, seconds)
            self._seconds[owner] = mean + _NEWEST * (seconds - mean)
            self.taken -= answers
            self._owners[owner] -= answers
            self._owners += Counter()  # owners without requests are forgotten

    def _retry_after(self, owner: str | None, answers: int) -> int:
        """Whole seconds until so many of a key's answers, or of all, have probably ended.

        Where ``n`` answers are under way and each takes ``s`` seconds from its arrival to its end,
        one ends every ``s / n`` seconds (Little's law), however long each of them waits or runs.
        """
        known = [*self._seconds.values()]
        mean = sum(known) / len(known) if known else 1.0
        if owner is not None:
            mean = self._seconds.get(owner, mean)
        under_way = self.taken if owner is None else self._owners[owner]
        return min(_LONGEST, max(1, math.ceil(mean * answers / under_way)))
