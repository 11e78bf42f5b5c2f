"""Whatever fails while a decoder is opened, and whenever: what was opened before is closed."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest

from specplug import BatchDecoder, Bundle, EngineError, SpeculativeDecoder, engines, tuning
from specplug.bundle import Component
from specplug.cli.tune import tune as tune_command
from specplug.engines import pytorch
from specplug.engines.fake import FakeEngine
from specplug.engines.padded import PaddedEngine
from specplug.export import export_bundle
from specplug.opening import EngineOptions
from specplug.owned import closing_on_failure
from specplug.types import HIDDEN_STATES, SpecplugError
from tests_support.languages import language
from tests_support.tiny import byte_tokenizer, write_checkpoint

STEPS = (
    "opening", "bundle", "tuning", "drafters", "decoding", "decoder", "batching", "text",
    "measured_decoder", "engines", "history", "controller",
)  # fmt: skip
"""Modules whose every call is made to fail once."""


class FaultError(Exception):
    """No error of specplug's own: nothing expects it."""


class Counted(FakeEngine):
    """An engine that is counted while it is open."""

    open: ClassVar[list[Counted]] = []

    def __init__(self, component: Component) -> None:
        size = component.vocab_size
        super().__init__(language(0, vocab_size=size), vocab_size=size, max_batch=8)
        self.spec = replace(self.spec, hidden=(HIDDEN_STATES,))
        self.open.append(self)

    def close(self) -> None:
        self.open.remove(self)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    def load(folder: Path, component: Component, options: EngineOptions) -> Counted:
        return Counted(component)

    monkeypatch.setattr(engines, "load", load)
    Counted.open.clear()
    return Counted.open


def failing(call: Callable[[], Any], number: int) -> bool:
    """Whether the call of that number, counted within STEPS, was reached; there it fails."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: object) -> None:
        nonlocal seen
        package, _, rest = str(frame.f_globals.get("__name__")).partition(".")
        if frame.f_code.co_name == "<genexpr>":  # ends in peace, too
            return
        if package == "specplug" and rest.partition(".")[0] in STEPS:
            seen += 1
            if seen == number:
                raise FaultError(frame.f_code.co_name)

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except (FaultError, SpecplugError):  # some errors are named anew
        assert seen >= number
    finally:
        sys.settrace(before)
    return seen >= number


@pytest.fixture(scope="module")
def universal_bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("universal")
    draft = write_checkpoint(
        folder / "draft", seed=3, hidden_size=32, tokenizer=byte_tokenizer(("<|extra|>",))
    )
    export_bundle(tiny_source, folder / "made", precision="fp32", draft=draft)
    return folder / "made"


@pytest.fixture(params=["draft", "head", "universal", "recycle"])
def opening(request: pytest.FixtureRequest) -> tuple[Bundle, str]:
    kind = request.param
    if kind == "head":
        return Bundle.open(request.getfixturevalue("head_bundles")["fp32-ort"]), kind
    if kind == "universal":
        return Bundle.open(request.getfixturevalue("universal_bundle")), kind
    return Bundle.open(request.getfixturevalue("tiny_bundle")), kind


def test_every_call_of_an_opening_that_fails_closes_what_is_open(opening, counted, monkeypatch):
    bundle, drafter = opening
    monkeypatch.setattr(Bundle, "open", lambda path: bundle)
    kind = BatchDecoder if drafter == "draft" else SpeculativeDecoder
    made: list[Any] = []

    def call() -> None:
        made.append(kind.from_bundle(bundle.path, drafter=drafter))

    call()  # imports, and what is computed once
    assert len(counted) == (1 if drafter == "recycle" else 2)
    made.pop().close()
    assert not counted
    number = 0
    while failing(call, number := number + 1):
        while made:  # the fault was passed over
            made.pop().close()
        assert not counted, f"call {number} failed"
    assert number > 10
    made.pop().close()
    assert not counted


@pytest.mark.parametrize("error", [FaultError, MemoryError, KeyboardInterrupt, EngineError])
def test_the_second_engine_that_cannot_be_opened(error, opening, counted, monkeypatch) -> None:
    bundle, drafter = opening
    if drafter == "recycle":
        monkeypatch.setattr(Bundle, "continuations", lambda bundle: fail())
    load, calls = engines.load, iter(range(9))

    def fail() -> None:
        raise error("no room")

    monkeypatch.setattr(engines, "load", lambda *what: fail() if next(calls) else load(*what))
    with pytest.raises(error, match="no room"):
        SpeculativeDecoder.from_bundle(bundle.path, drafter=drafter)
    assert not counted


def test_what_cannot_be_closed_keeps_nothing_else_open(caplog) -> None:
    closed = []

    class One:
        def __init__(self, number: int) -> None:
            self.number = number

        def close(self) -> None:
            closed.append(self.number)
            if self.number == 1:
                raise OSError("stuck")

    def fail() -> None:
        with closing_on_failure() as opened:
            for number in range(3):
                opened(One(number))
            raise FaultError

    with pytest.raises(FaultError):
        fail()
    assert closed == [2, 1, 0]
    assert caplog.messages == ["One could not be closed: stuck"]


def test_an_engine_that_cannot_be_padded_is_closed(model: Any, monkeypatch) -> None:
    closed = []

    def fail(engine: PaddedEngine) -> int:
        raise FaultError

    monkeypatch.setattr(PaddedEngine, "_measure", fail)
    monkeypatch.setattr(pytorch.PyTorchEngine, "close", lambda engine: closed.append(engine))
    with pytest.raises(FaultError):
        pytorch.open_model(model)
    assert len(closed) == 1


def resources() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task"))


@pytest.fixture
def failing_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*what: object) -> None:
        raise FaultError

    monkeypatch.setattr("specplug.opening.read_costs", fail)


def test_sessions_threads_and_files_do_not_pile_up(tiny_bundle: Path, failing_costs) -> None:
    """With ONNX Runtime itself, whose sessions have threads of their own."""

    def fail() -> None:
        with pytest.raises(FaultError):
            SpeculativeDecoder.from_bundle(tiny_bundle, drafter="none", threads=2)

    fail()
    before = resources()
    for _ in range(5):
        fail()
    assert resources() <= before


def test_a_failed_tune_closes_its_engine(tiny_bundle: Path, counted, monkeypatch) -> None:
    def fail(*what: object, **more: object) -> None:
        raise FaultError

    monkeypatch.setattr(tuning, "tune", fail)
    with pytest.raises(FaultError):
        tune_command(tiny_bundle)
    assert not counted
