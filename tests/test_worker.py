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
from specplug.decoder import SpeculativeDecoder
from specplug.engines.fake import FakeEngine
from specplug.engines.faulty import Faults, FaultyEngine
from specplug.serving.worker import MOST_FAILURES, Channel, Worker
from specplug.types import EngineError, Step
from tests_support.languages import language

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


def test_under_faults_every_answer_is_right_or_failed_by_name() -> None:
    """Delays, exceptions of every kind and NaN; the thread lives, and nothing is left behind."""
    row = language(5, vocab_size=VOCAB)
    alone = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB))
    prompts = [[n % VOCAB, n // VOCAB % VOCAB] for n in range(30)]
    right = [list(alone.generate(prompt, max_tokens=8).token_ids) for prompt in prompts]
    faults = Faults(forward=0.1, scores=0.05, no_numbers=0.05, save=0.1, load=0.1, delay=0.1)
    engine = FaultyEngine(FakeEngine(row, vocab_size=VOCAB, max_batch=3), faults, seed=1)
    told = []

    def count(channel: Channel) -> None:
        told.append(channel)
        raise ZeroDivisionError  # what counts them is no answer's fault

    async def ask() -> list[tuple[list[int], Exception | None]]:
        worker.start()
        channels = []
        for prompt in prompts:
            channels.append(worker.submit(prompt, max_tokens=8))
            await asyncio.sleep(0.002)
        await until(lambda: all(channel.ended for channel in channels))
        found = [([t.id for t in channel.take()], channel.failure) for channel in channels]
        for channel in channels:
            worker.release(channel)
        assert not worker._channels
        return found

    worker = Worker(BatchDecoder(engine), count)
    found = asyncio.run(ask())
    assert worker.alive
    assert worker.stop(PATIENCE)
    failed = 0
    for (made, failure), expected in zip(found, right, strict=True):
        if failure is None:
            assert made == expected
        else:
            failed += 1
            assert isinstance(failure, EngineError)
            assert made == expected[: len(made)]
    assert 0 < failed < len(prompts)
    assert told


def test_an_engine_that_always_fails_is_told_and_recovers() -> None:
    row = language(5, vocab_size=VOCAB)
    engine = FaultyEngine(FakeEngine(row, vocab_size=VOCAB), Faults(forward=1.0))
    worker = Worker(BatchDecoder(engine), nothing)

    async def answer() -> Exception | None:
        channel = worker.submit([1], max_tokens=2)
        await until(lambda: channel.ended)
        worker.release(channel)
        return channel.failure

    async def ask() -> None:
        worker.start()
        for number in range(MOST_FAILURES):
            assert worker.failures == number
            assert not worker.failing
            assert isinstance(await answer(), EngineError)
        assert worker.failing
        assert worker.alive
        engine.faults = Faults()
        assert await answer() is None
        assert worker.failures == 0
        assert worker.stop(PATIENCE)

    asyncio.run(ask())


def test_a_closed_decoder_ends_the_thread_and_every_answer() -> None:
    engine = Gate()
    decoder = BatchDecoder(engine)
    worker = Worker(decoder, nothing)

    async def ask() -> None:
        worker.start()
        engine.open.clear()
        channel = worker.submit([1], max_tokens=50)
        assert await asyncio.to_thread(engine.entered.wait, PATIENCE)
        closing = asyncio.create_task(asyncio.to_thread(decoder.close))
        await until(lambda: decoder.closed)
        engine.open.set()
        await until(lambda: channel.ended)
        await closing
        assert "closed" in str(channel.failure)
        await until(lambda: not worker.alive)
        worker.release(channel)
        assert not worker._channels

    asyncio.run(ask())
