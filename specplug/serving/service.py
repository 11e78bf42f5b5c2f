"""What every request needs: the worker, the limits, the thread pool, and whether to go on."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from specplug.batching import BatchDecoder
from specplug.generation import Generation
from specplug.grammar_rehearsal import Rehearsals
from specplug.serving.answers import Answers, ClientGoneError
from specplug.serving.asked import Asked
from specplug.serving.constraints import constrained
from specplug.serving.errors import ApiError
from specplug.serving.limits import Admission
from specplug.serving.metrics import Metrics
from specplug.serving.pool import FairPool
from specplug.serving.prepared import Preparing
from specplug.serving.settings import ServerSettings
from specplug.serving.worker import Channel, Worker
from specplug.text import Tokenizer

_log = logging.getLogger(__name__)

_PREPARING = 4  # threads that tokenize prompts and compile grammars
LAST_STEP = 5.0
"""Seconds that the running step has to end in any case, when the application is to stop."""

__all__ = ["Asked", "Service"]

T = TypeVar("T")


class Service:
    """One decoder, and those who ask it."""

    def __init__(self, settings: ServerSettings, decoder: BatchDecoder) -> None:
        if decoder.tokenizer is None:
            raise ValueError("a server needs a tokenizer: export the bundle with one")
        self.settings = settings
        self.decoder = decoder
        decoder.broken_drafter = "plain"  # no answer may fail for what changes none
        self.tokenizer: Tokenizer = decoder.tokenizer
        self.metrics = Metrics(decoder)
        self.worker = Worker(decoder, self.metrics.progress)
        self.admission = Admission(
            decoder.max_batch,
            settings.max_waiting,
            settings.max_per_key,
            keyed=settings.keys is not None,
        )
        self.draining = False
        self.in_flight = 0
        """HTTP requests that have not been answered completely."""
        self.created = int(time.time())
        self.hung = False
        """Whether a step was still running when the application had ended: it never may end, and
        closing the decoder would wait for it."""
        self._drained_by: float | None = None  # of the monotonic clock
        self._running: set[Answers] = set()
        self._making = ThreadPoolExecutor(1, thread_name_prefix="specplug-reply")
        self._pool = FairPool(_PREPARING, "specplug-prepare")
        self._readers = FairPool(1, "specplug-read")
        self._rehearsals = Rehearsals(self.tokenizer, vocab_size=decoder.target.spec.vocab_size)
        self.on_abort: list[Callable[[], None]] = []
        """Called when what runs is given up."""
        self._preparing: set[asyncio.Future[list[Generation]]] = set()

    @property
    def ready(self) -> bool:
        """Whether this is a good place to send requests to."""
        return self.illness is None and self.worker.prepared and not self.draining

    @property
    def trouble(self) -> str | None:
        """Why no request can be answered, for the person who runs the server; None: they can."""
        if not self.worker.alive:
            return "the thread that decodes has ended: restart the server"
        limit = self.settings.step_timeout
        if self.worker.stalled(limit):
            return f"the engine has not answered for {limit:g} seconds: restart the server"
        return None

    @property
    def illness(self) -> str | None:
        """As :attr:`trouble`; also where the engine fails again and again, though requests are
        still tried, the first of which that is answered ends it."""
        if self.trouble is None and self.worker.failing:
            return (
                f"the engine failed {self.worker.failures} times and no answer was completed "
                "since: the log tells why"
            )
        return self.trouble

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The life of the application."""
        self.worker.start()
        try:
            yield
        finally:
            self.drain()
            self.abort()
            self._pool.close()
            self._readers.close()
            self._rehearsals.close()
            self._making.shutdown(wait=False, cancel_futures=True)
            assert self._drained_by is not None
            within = max(LAST_STEP, self._drained_by - time.monotonic())
            self.hung = not await asyncio.to_thread(self.worker.stop, within)
            if self.hung:
                _log.error(
                    "the engine's step has taken %.0f seconds and is left behind: end the process",
                    self.worker.step_seconds,
                )

    def drain(self) -> None:
        """Take no more requests; those that were taken are answered."""
        self.draining = True
        if self._drained_by is None:
            self._drained_by = time.monotonic() + self.settings.shutdown_timeout

    def abort(self) -> None:
        """Give up what runs."""
        for end in self.on_abort:
            end()
        for answers in list(self._running):
            answers.fail(_shutting_down())
        for work in list(self._preparing):
            work.cancel()

    @asynccontextmanager
    async def answering(
        self, asked: Asked, gone: asyncio.Future[None] | None = None
    ) -> AsyncIterator[Answers]:
        """Have a request answered, within the limits.

        Args:
            asked: what is wanted.
            gone: done when the client has gone away; it is looked at until answers are there.

        Raises:
            ApiError: it cannot be, or not now.
            ClientGoneError: the client went away while its request was prepared.
        """
        request, settings = asked.request, self.settings
        most = min(settings.max_choices, self.admission.most)
        if asked.answers > most:
            raise ApiError(
                400, f"{asked.answers} answers (prompts times n): this server gives {most} at most",
                param="n",
            )  # fmt: skip
        with self.admission.enter(asked.owner, asked.answers):
            channels: list[Channel] = []
            generations = await self._prepared(asked, gone)
            try:
                for generation in generations:
                    channels.append(self.worker.queue(generation))
            except BaseException:
                for channel in channels:
                    self.worker.release(channel)
                raise
            answers = Answers(
                self.worker,
                channels,
                deadline=asked.deadline,
                most_waiting=settings.stream_buffer if request.stream else None,
            )
            self._running.add(answers)
            try:
                with answers:
                    yield answers
            finally:
                self._running.discard(answers)

    async def off_loop(self, make: Callable[[], T]) -> T:
        """What takes long to make of answers, on a thread: of all requests one at a time, so that
        whoever needs Python's lock waits for one thread at most.
        """
        return await asyncio.get_running_loop().run_in_executor(self._making, make)

    async def read(self, owner: str, make: Callable[[], T]) -> T:
        """What is made of a long body, on a thread: one at a time, in turn by key."""
        work = asyncio.ensure_future(self._readers.run(owner, make))
        try:
            await asyncio.wait([work])
            return _result(work)
        finally:
            work.cancel()

    async def _prepared(self, asked: Asked, gone: asyncio.Future[None] | None) -> list[Generation]:
        """A request's generations, made on a thread within the request's time."""
        preparing = Preparing(self.decoder, self.settings, asked, self._rehearsals)
        lane = asked.owner, constrained(asked.request)
        work = asyncio.ensure_future(self._pool.run(lane, preparing.generations))
        self._preparing.add(work)
        try:
            async with asyncio.timeout_at(asked.deadline):
                ends = (work,) if gone is None else (work, gone)
                await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientGoneError
            return _result(work)
        except TimeoutError:
            raise ApiError(504, "the answer took longer than this server allows") from None
        finally:
            self._preparing.discard(work)
            preparing.abandon()
            work.cancel()


def _result(work: asyncio.Future[T]) -> T:
    """What was made on a thread; it is cancelled when the threads are closed."""
    if work.cancelled():
        raise _shutting_down()
    return work.result()


def _shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", retry_after=1, outcome="given_up")
