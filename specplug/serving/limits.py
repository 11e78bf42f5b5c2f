"""How much may be asked at a time, and how long to stay away when it is too much."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from specplug.serving.errors import ApiError

_LONGEST = 60  # seconds that anyone is told to stay away


class Admission:
    """Counts what is being answered.

    Args:
        batch: answers that are made at a time.
        waiting: answers that may wait beside these.
        per_owner: requests of one key at a time; None: any number.
    """

    def __init__(self, batch: int, waiting: int, per_owner: int | None) -> None:
        self._batch = batch
        self._places = batch + waiting
        self._per_owner = per_owner
        self.taken = 0
        """Places."""
        self._owners: Counter[str] = Counter()
        self._seconds = 1.0  # an answer takes, lately

    @property
    def most(self) -> int:
        """Answers that a request can ask for at all."""
        return self._places

    @contextmanager
    def enter(self, owner: str, answers: int) -> Iterator[None]:
        """Hold places for a request.

        Raises:
            ApiError: status 429: there are not as many, or its owner has its share.
        """
        if self._per_owner is not None and self._owners[owner] >= self._per_owner:
            raise ApiError(
                429,
                f"this key has {self._per_owner} requests running, as many as it may",
                retry_after=self._retry_after(self._batch),
            )
        if self.taken + answers > self._places:
            raise ApiError(
                429,
                "too many requests are waiting",
                retry_after=self._retry_after(self.taken + answers - self._places),
            )
        self.taken += answers
        self._owners[owner] += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += 0.1 * (time.monotonic() - began - self._seconds)
            self.taken -= answers
            self._owners[owner] -= 1
            self._owners += Counter()  # owners without requests are forgotten

    def _retry_after(self, answers: int) -> int:
        """Seconds until so many have probably ended."""
        return min(_LONGEST, max(1, math.ceil(self._seconds * answers / self._batch)))
