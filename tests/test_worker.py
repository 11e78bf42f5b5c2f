"""The thread that decodes: how long its step has taken, and that a failure in it ends no other's
answer."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from specplug.batching import BatchDecoder
from specplug.engines.fake import FakeEngine
from specplug.serving.worker import Channel, Worker
from specplug.types import Step

VOCAB = 6
PATIENCE = 20.0  # seconds for what should come at once


class Gate(FakeEngine):
    """A fake engine whose calls wait while it is shut."""

    def __init__(self, *, max_batch: int = 2) -> None:
        super().__init__(lambda prefix: np.eye(VOCAB)[len(prefix) % VOCAB],
                         vocab_size=VOCAB, max_batch=max_batch)  # fmt: skip
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()

    def forward(self, step: Step) -> Any:
        self.entered.set()
        assert self.open.wait(PATIENCE)
        return super().forward(step)


async def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        await asyncio.sleep(0.001)


def nothing(channel: Channel) -> None:
    """No metrics."""


def test_a_step_that_hangs_is_seen_from_another_thread() -> None:
    engine = Gate()
    worker = Worker(BatchDecoder(engine), nothing)

    async def hang() -> None:
        worker.start()
        await until(lambda: worker.prepared)
        assert worker.step_seconds == 0.0
        assert not worker.stalled(0.0)
        engine.open.clear()
        channel = worker.submit([1], max_tokens=3)
        assert await asyncio.to_thread(engine.entered.wait, PATIENCE)
        before = worker.step_seconds
        await asyncio.sleep(0.01)
        assert before < worker.step_seconds < PATIENCE
        assert worker.stalled(0.01)
        assert not worker.stalled(PATIENCE)
        assert worker.stop(within=0.01) is False
        assert worker.alive
        engine.open.set()
        assert worker.stop(within=PATIENCE) is True
        assert worker.step_seconds == 0.0
        assert not channel.ended

    asyncio.run(hang())
