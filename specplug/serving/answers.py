"""The answers to one request, while they are made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from specplug.context import Token
from specplug.sampling import NothingLeftError
from specplug.serving.errors import ApiError
from specplug.serving.worker import Channel, Worker


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


class SlowReaderError(Exception):
    """The client does not read what it asked for."""


@dataclass(frozen=True, slots=True)
class Update:
    """What one of the answers got."""

    index: int
    tokens: Sequence[Token]
    finish_reason: str | None
    """None: more will come."""


class Answers:
    """Takes what the worker makes; leaving it as a context manager cancels what has not ended.

    Args:
        worker: that makes them.
        channels: one an answer.
        deadline: of the event loop's clock.
        most_waiting: tokens of an answer that may wait to be taken; None: any number.
    """

    def __init__(
        self,
        worker: Worker,
        channels: Sequence[Channel],
        *,
        deadline: float,
        most_waiting: int | None,
    ) -> None:
        self.channels = channels
        self._worker = worker
        self._deadline = deadline
        self._news = asyncio.Event()
        self._news.set()  # something may have come before anybody looked
        self._failure: Exception | None = None
        for channel in channels:
            channel.wake = self._news.set
            channel.limit(most_waiting)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *exc: object) -> None:
        for channel in self.channels:
            self._worker.release(channel)

    def fail(self, failure: Exception) -> None:
        """Have :meth:`updates` raise it."""
        self._failure = failure
        self._news.set()

    async def updates(self) -> AsyncIterator[list[Update]]:
        """What the answers got since last time, until all have ended.

        Raises:
            ApiError: the time is over (504), the engine failed (500), or what the request asks for
                excludes every token (400).
            SlowReaderError: more tokens waited to be taken than may.
        """
        running = dict(enumerate(self.channels))
        while running:
            await self._wait()
            found = []
            for index, channel in list(running.items()):
                update = _update(index, channel)
                if update.finish_reason is not None:
                    del running[index]
                if update.tokens or update.finish_reason is not None:
                    found.append(update)
            if found:
                yield found

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._news.wait()
        except TimeoutError:
            raise ApiError(504, "the answer took longer than this server allows") from None
        self._news.clear()
        if self._failure is not None:
            raise self._failure


def _update(index: int, channel: Channel) -> Update:
    if channel.overrun:
        raise SlowReaderError
    failure = channel.failure
    if isinstance(failure, NothingLeftError):
        message = str(failure)  # the request's own fault
        raise ApiError(
            400, message, param="min_tokens" if message.startswith("min_tokens") else None
        )
    if failure is not None:
        raise failure
    tokens = channel.take()
    reason = None
    if channel.ended:
        reason = _REASONS.get(channel.generation.finish_reason or "")
        if reason is None:
            raise ApiError(
                503, "the answer was given up: try again", retry_after=1, outcome="given_up"
            )
    return Update(index, tokens, reason)


_REASONS = {"stop": "stop", "length": "length", "context": "length"}
