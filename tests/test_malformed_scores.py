"""Engines that give something else than arrays of scores: the answers concerned fail by name, and
the next ones are right."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from specplug import BatchDecoder, SamplingParams, SpeculativeDecoder
from specplug.drafters import ModelDrafter
from specplug.engine_calls import forward
from specplug.engines.fake import FakeEngine
from specplug.serving.worker import Worker
from specplug.types import EngineError, Step
from tests_support.batching import drain, ids
from tests_support.languages import language

VOCAB = 6
PROMPT = [1, 2, 1, 2]
SAMPLED = SamplingParams(temperature=1.0, seed=3)
PATIENCE = 20.0  # seconds for what should come at once

Change = Callable[[Any], Any]
OF_BOTH: dict[str, Change] = {
    "none": lambda found: None,
    "list": lambda found: found.tolist(),
    "no rows": lambda found: found[:0],
    "a row more": lambda found: np.concatenate([found, found[:1]]),
    "no positions": lambda found: found[:, :0],
    "a position less": lambda found: found[:, 1:],
    "flat": lambda found: found.reshape(-1),
    "text": lambda found: found.astype(str),
    "objects": lambda found: found.astype(object),
    "truth": lambda found: found > 0,
    "complex": lambda found: found.astype(complex),
}
CHANGES: list[tuple[str, str, Change]] = [
    *(("argmax", name, change) for name, change in OF_BOTH.items()),
    ("argmax", "floats", lambda found: found.astype(float)),
    ("argmax", "too large", lambda found: found + VOCAB),
    ("argmax", "too small", lambda found: found - 100),
    *(("logits", name, change) for name, change in OF_BOTH.items()),
    ("logits", "integers", lambda found: found.astype(np.int64)),
    ("logits", "fewer tokens", lambda found: found[..., 1:]),
    ("logits", "more tokens", lambda found: np.concatenate([found, found], axis=-1)),
]
NAMES = [f"{what} {name}" for what, name, _ in CHANGES]


class Malformed:
    """Scores of which one reading gives something else."""

    def __init__(self, scores: Any, what: str, change: Change) -> None:
        self._scores, self._what, self._change = scores, what, change

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._scores, name)
        return (lambda: self._change(found())) if name == self._what else found


class Malforming(FakeEngine):
    """Gives such scores while it is told to, or none at all."""

    def __init__(self, rows: int = 1) -> None:
        super().__init__(language(1, vocab_size=VOCAB), vocab_size=VOCAB, max_batch=rows)
        self.wrong: tuple[str, Change] | None = None
        self.nothing = False

    def forward(self, step: Step) -> Any:
        scores = super().forward(step)
        if self.nothing:
            return None
        return scores if self.wrong is None else Malformed(scores, *self.wrong)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize(("what", "name", "change"), CHANGES, ids=NAMES)
def test_the_answers_fail_by_name_and_the_next_are_right(
    what: str, name: str, change: Change, rows: int
) -> None:
    sampling = SamplingParams() if what == "argmax" else SAMPLED
    right = SpeculativeDecoder(Malforming()).generate(PROMPT, sampling=sampling, max_tokens=9)
    engine = Malforming(rows)
    batch = BatchDecoder(engine, draft_tokens=2)
    for begun in (False, True):  # in the prompt's call, and in a round
        asked = [batch.submit(PROMPT, sampling=sampling, max_tokens=9) for _ in range(rows)]
        if begun:
            for _ in range(rows):
                batch.step()
        engine.wrong = what, change
        drain_whatever(batch)
        for one in asked:
            assert isinstance(one.error, EngineError), one.error
            assert f"as {what}, where" in str(one.error)
        engine.wrong = None
        after = [batch.submit(PROMPT, sampling=sampling, max_tokens=9) for _ in range(rows)]
        found = drain(batch)
        assert all(tuple(ids(found[one])) == right.token_ids for one in after)


def drain_whatever(batch: BatchDecoder) -> None:
    while not batch.idle:
        batch.step()


def test_no_scores_at_all() -> None:
    engine = Malforming()
    engine.nothing = True
    with pytest.raises(EngineError, match="failed in"):
        SpeculativeDecoder(engine).generate(PROMPT, max_tokens=3)


@pytest.mark.parametrize(("what", "name", "change"), CHANGES, ids=NAMES)
def test_of_a_draft_model_they_are_no_draft(what: str, name: str, change: Change) -> None:
    right = SpeculativeDecoder(Malforming()).generate(PROMPT, sampling=SAMPLED, max_tokens=9)
    draft = Malforming()
    draft.wrong = what, change
    decoder = SpeculativeDecoder(
        Malforming(), drafter=ModelDrafter(draft), draft_tokens=3, broken_drafter="plain"
    )
    for _ in range(2):
        made = decoder.generate(PROMPT, sampling=SAMPLED, max_tokens=9)
        assert made.token_ids == right.token_ids
    draft.wrong = None
    assert decoder.generate(PROMPT, sampling=SAMPLED, max_tokens=9).stats.accepted


@pytest.mark.parametrize(
    "found", [None, [[1.0]], np.ones((1, 4)), np.ones((2, 4, 3)), np.ones((1, 4, 3), dtype=int)]
)
def test_hidden_states(found: Any) -> None:
    class Hidden(Malforming):
        def forward(self, step: Step) -> Any:
            return SimpleNamespace(hidden=lambda name: found)

    step = Step(tokens=np.array([[1, 2, 3, 4]]), past=np.array([0]))
    with pytest.raises(EngineError, match="as hidden, where floats"):
        forward(Hidden(), step).hidden("middle")


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, SystemExit])
@pytest.mark.parametrize("what", ["forward", "save", "load"])
def test_what_would_end_a_thread_is_a_failure_on_the_decoding_one(what: str, error: Any) -> None:
    engine = Malforming(2)
    right = SpeculativeDecoder(Malforming()).generate(PROMPT, max_tokens=6)
    works = getattr(engine, what)

    def fail(*arguments: Any) -> Any:
        raise error

    async def ask() -> None:
        worker.start()
        for broken in (False, True, False):
            setattr(engine, what, fail if broken else works)
            channels = [worker.submit(PROMPT, max_tokens=6) for _ in range(3)]
            async with asyncio.timeout(PATIENCE):
                while not all(channel.ended for channel in channels):
                    await asyncio.sleep(0.001)
            for channel in channels:
                if channel.failure is not None:
                    assert broken
                    assert isinstance(channel.failure, EngineError)
                else:
                    made = tuple(token.id for token in channel.take())
                    assert made == right.token_ids
                worker.release(channel)
            async with asyncio.timeout(PATIENCE):
                while worker._channels:
                    await asyncio.sleep(0.001)

    worker = Worker(BatchDecoder(engine), lambda channel: None)
    asyncio.run(ask())
    assert worker.alive
    assert worker.stop(PATIENCE)
