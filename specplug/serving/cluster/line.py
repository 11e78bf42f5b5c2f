"""Requests with keys that wait in an ingress: a few go on to Ray, in turn by key.

Ray's own queue is first come, first served, so one key that fills it would make all others wait.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from specplug.serving.cluster.requests import Forwarded
from specplug.serving.keys import KeyRing
from specplug.serving.limits import Admission

AT_RAY = 8
"""Requests of an ingress that are in Ray's queue at a time: enough to keep it busy where replicas
are free, and few enough to wait behind."""


class RequestLine:
    """Lets requests go on, :data:`AT_RAY` at a time; used on one event loop.

    Args:
        keys: who may ask; requests of none of them are one further key's.
        waiting: requests that may wait, of one key half as many.
    """

    def __init__(self, keys: KeyRing, waiting: int) -> None:
        self._keys = keys
        self._admission = Admission(0, max(1, waiting), None, keyed=True)
        self._free = AT_RAY
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the next key first

    @asynccontextmanager
    async def turn(self, request: Forwarded) -> AsyncIterator[None]:
        """Wait for the request's turn, and hold it until a replica has taken the request.

        Raises:
            ApiError: status 429: too many wait, or too many of this key.
        """
        _, _, key = request.header(b"authorization").decode("latin-1").partition(" ")
        owner = self._keys.owner(key.strip()) or ""
        with self._admission.enter(owner, 1):
            if self._free:
                self._free -= 1
            else:
                await self._wait(owner)
            try:
                yield
            finally:
                self._give_turn()

    async def _wait(self, owner: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it was this one's turn just now
                self._give_turn()
            else:
                self._waiting[owner].remove(turn)
                if not self._waiting[owner]:
                    del self._waiting[owner]
            raise

    def _give_turn(self) -> None:
        """To the next key's first request; those that went away may still be in the line."""
        for owner, line in self._waiting.items():
            turn = next((one for one in line if not one.done()), None)
            if turn is not None:
                line.remove(turn)
                del self._waiting[owner]
                if line:
                    self._waiting[owner] = line  # now the last one
                turn.set_result(None)
                return
        self._free += 1
