"""The threads that prepare requests, shared out fairly: no key's slow requests hold all of them."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class _Job:
    lane: Hashable
    call: Callable[[], Any]
    made: asyncio.Future[Any]


class FairPool:
    """Runs calls on threads, in turn over lanes, of which each has half of the threads at most.

    Used on one event loop alone.

    Args:
        threads: how many calls run at the same time.
        name: of the threads.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._most = max(1, threads // 2)  # of a lane
        self._waiting: dict[Hashable, deque[_Job]] = {}  # the lane whose turn is next is first
        self._running: Counter[Hashable] = Counter()

    @property
    def waiting(self) -> int:
        """Calls that have not begun."""
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        """Calls that run, those that nobody waits for any more included."""
        return self._running.total()

    async def run(self, lane: Hashable, call: Callable[[], T]) -> T:
        """What a call returns or raises.

        Who stops waiting while the call has not begun takes it back. One that runs goes on, and
        its thread is taken until it ends.
        """
        job = _Job(lane, call, asyncio.get_running_loop().create_future())
        self._waiting.setdefault(lane, deque()).append(job)
        self._begin()
        try:
            made: T = await job.made
            return made
        finally:
            self._take_back(job)

    def close(self) -> None:
        """Begin no other call."""
        for jobs in self._waiting.values():
            for job in jobs:
                job.made.cancel()
        self._waiting.clear()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _begin(self) -> None:
        while self.running < self._threads:
            lane = next((one for one in self._waiting if self._running[one] < self._most), None)
            if lane is None:
                return
            jobs = self._waiting.pop(lane)
            job = jobs.popleft()
            if jobs:
                self._waiting[lane] = jobs  # behind the others
            self._running[lane] += 1
            future: Future[Any] = self._executor.submit(job.call)
            future.add_done_callback(partial(self._tell, job.made.get_loop(), job))

    def _tell(self, loop: asyncio.AbstractEventLoop, job: _Job, done: Future[Any]) -> None:
        with suppress(RuntimeError):  # the loop was closed: nobody is waiting
            loop.call_soon_threadsafe(self._ended, job, done)

    def _ended(self, job: _Job, done: Future[Any]) -> None:
        self._running[job.lane] -= 1
        self._running += Counter()  # lanes without calls are forgotten
        if not job.made.done():
            if done.cancelled():
                job.made.cancel()
            elif (failure := done.exception()) is not None:
                job.made.set_exception(failure)
            else:
                job.made.set_result(done.result())
        self._begin()

    def _take_back(self, job: _Job) -> None:
        jobs = self._waiting.get(job.lane)
        if jobs and job in jobs:
            jobs.remove(job)
            if not jobs:
                del self._waiting[job.lane]
