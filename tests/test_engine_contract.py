"""The contract suite over every adapter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specplug import Engine, EngineOptions
from specplug.bundle import Bundle
from specplug.engines import load
from specplug.engines.contract import EngineContract, Make, assert_close
from specplug.engines.fake import FakeEngine
from specplug.engines.host import HostScores
from specplug.engines.padded import PaddedEngine
from specplug.engines.pytorch import PyTorchEngine, open_model
from specplug.engines.tensorrt import TensorRTEngine
from specplug.export.source import open_source
from specplug.types import EngineError, Step
from tests_support.languages import language
from tests_support.tensorrt_double import HostDevice, library, write_plan

VOCAB = 260
BUNDLES = {
    "ort-fp32": "fp32",
    "ort-w8a8": "w8a8",
    "ort-int4": "int4",
    "standard-fp32": "standard-fp32",
    "standard-fp16": "standard-fp16",
    "standard-int8": "standard-int8",
    "standard-int4": "standard-int4",
    "concat": "optimum",
    "genai-int4": "genai-int4",
}


@contextmanager
def broken(holder: Any, name: str, error: Exception, *calls: str) -> Iterator[None]:
    """Meanwhile calls of an attribute, or of methods of it, raise."""
    whole = getattr(holder, name)

    class Broken:
        def __getattr__(self, name: str) -> Any:
            return self if name in calls else getattr(whole, name)

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            raise error

    setattr(holder, name, Broken())
    yield
    setattr(holder, name, whole)


def inner(engine: Any) -> Any:
    """An adapter without what pads its calls."""
    while hasattr(engine, "_engine") and not isinstance(engine, TensorRTEngine):
        engine = engine._engine
    return engine


class TestFake(EngineContract):
    @pytest.fixture
    def make(self) -> Make:
        row = language(1, order=8, vocab_size=VOCAB)
        return lambda max_batch=1: FakeEngine(
            row, vocab_size=VOCAB, max_length=400, max_batch=max_batch
        )


class TestOnnxRuntime(EngineContract):
    @pytest.fixture(params=BUNDLES)
    def make(
        self,
        request: pytest.FixtureRequest,
        tiny_bundles: dict[str, Path],
        foreign_bundles: dict[str, Path],
    ) -> Make:
        bundle = Bundle.open((tiny_bundles | foreign_bundles)[BUNDLES[request.param]])

        def make(max_batch: int = 1) -> Engine:
            options = EngineOptions(max_batch=max_batch)
            return load(bundle.path, bundle.manifest.target, options)

        return make

    def failing(self, engine: Any, error: Exception) -> Any:
        return broken(engine, "_session", error, "run", "run_with_iobinding")


class TestPyTorch(EngineContract):
    @pytest.fixture(params=["fp32", "bf16"])
    def make(self, request: pytest.FixtureRequest, tiny_source: Path) -> Make:
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[request.param]

        def make(max_batch: int = 1) -> Engine:
            model = open_source(tiny_source).model(dtype, "cpu")
            return open_model(model, max_batch=max_batch, hidden=(0, 1))

        return make

    def failing(self, engine: Any, error: Exception) -> Any:
        return broken(inner(engine), "_model", error)


class Shifted:
    """An engine whose logits move with something of the call."""

    def __init__(self, engine: Any, by: Callable[[Step], float]) -> None:
        self._engine, self._by = engine, by

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, step: Step) -> HostScores:
        scores = self._engine.forward(step)
        hidden = {name: scores.hidden(name) for name in self._engine.spec.hidden}
        return HostScores(scores.logits() + np.float32(1e-3 * self._by(step)), hidden)


class TestOneWidth(EngineContract):
    """Rows that depend on the shape of the call, as in fp32 on CUDA."""

    @pytest.fixture
    def make(self, tiny_source: Path) -> Make:
        def make(max_batch: int = 1) -> Engine:
            model = open_source(tiny_source).model(torch.float32, "cpu")
            engine = PyTorchEngine(model, max_batch=max_batch, hidden=(0, 1))
            return PaddedEngine(Shifted(engine, lambda step: step.tokens.size))

        return make

    def failing(self, engine: Any, error: Exception) -> Any:
        return broken(inner(engine), "_model", error)


def test_rows_that_depend_on_other_tokens_are_refused(tiny_source: Path) -> None:
    engine = PyTorchEngine(open_source(tiny_source).model(torch.float32, "cpu"))
    with pytest.raises(EngineError, match=r"on cpu rows of pytorch depend on what else"):
        PaddedEngine(Shifted(engine, lambda step: float(step.tokens.sum())))
    engine.close()


class TestTensorRT(EngineContract):
    """The adapter, over a double that runs the plan's graph on the CPU, not on a GPU."""

    @pytest.fixture(params=["standard-fp32", "standard-fp16", "standard-int4"])
    def make(
        self, request: pytest.FixtureRequest, tiny_bundles: dict[str, Path], tmp_path: Path
    ) -> Make:
        bundle = Bundle.open(tiny_bundles[request.param])
        target = bundle.manifest.target

        def make(max_batch: int = 1) -> Engine:
            plan = tmp_path / f"{max_batch}.plan"
            profiles = [(max_batch, width) for width in (1, 16, 64)]
            write_plan(bundle.path / target.graph, plan, 256, profiles)
            engine = TensorRTEngine(
                plan.read_bytes(),
                library=library(),
                device=HostDevice(),
                vocab_size=target.vocab_size,
                max_length=256,
                max_batch=max_batch,
            )
            return PaddedEngine(engine)

        return make

    def failing(self, engine: Any, error: Exception) -> Any:
        return broken(inner(engine)._device, "upload", error)


def test_hidden_states_agree(tiny_bundles: dict[str, Path], tiny_source: Path) -> None:
    """Those of the standard graph, in fp32, are the model's own."""
    bundle = Bundle.open(tiny_bundles["standard-fp32"])
    tokens = np.random.default_rng(0).integers(0, VOCAB, size=(1, 20))
    model = open_source(tiny_source).model(torch.float32, "cpu")
    found = []
    for engine in (
        load(bundle.path, bundle.manifest.target, EngineOptions()),
        open_model(model, hidden=(0, 1)),
    ):
        (name,) = engine.spec.hidden
        step = Step(tokens=tokens, past=np.array([0]), scores_from=19)
        found.append(engine.forward(step).hidden(name)[0].copy())
        engine.close()
    assert_close(*found)


def test_dialects_agree(tiny_bundles: dict[str, Path]) -> None:
    """Logits of the standard graph are those of ONNX Runtime's own, in fp32."""
    from specplug.engines.contract import rows

    found = []
    tokens = np.random.default_rng(0).integers(0, VOCAB, size=300).tolist()
    for name in ("fp32", "standard-fp32"):
        bundle = Bundle.open(tiny_bundles[name])
        engine = load(bundle.path, bundle.manifest.target, EngineOptions())
        pieces = [tokens[i : i + 50] for i in range(0, 300, 50)]
        found.append(np.concatenate([rows(engine, p, 50 * i) for i, p in enumerate(pieces)]))
        engine.close()
    assert_close(*found)
