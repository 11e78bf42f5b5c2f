"""What only a GPU can show: every engine on CUDA. Skipped, with the reason, where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from specplug import Engine, EngineOptions, SamplingParams, SpeculativeDecoder
from specplug.bundle import Bundle
from specplug.engines import load
from specplug.engines.contract import EngineContract, Make
from specplug.engines.cuda_memory import Device, open_device
from specplug.engines.pytorch import open_model
from specplug.engines.pytorch_head import PyTorchHeadEngine
from specplug.export import export_bundle
from specplug.export.head import Head
from specplug.export.source import Source, open_source
from specplug.export.speculators import open_head
from specplug.export.tensorrt import Target
from specplug.types import EngineError, ExportError, MissingExtraError
from tests_support.heads import WRITTEN, Fed

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU here that PyTorch can use"
)

GPU = "cuda:0"
IN_HALF = 2**-5
"""Of logits in 16 bits, of which the shorter kind keeps 8, after a few layers."""
PROMPT = "one two three one two three one two"
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=5)

Exported = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def exported(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Bundles of the tiny checkpoint, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("cuda")

    def export(dialect: str, precision: str) -> Path:
        path = folder / f"{dialect}-{precision}.bundle"
        if not path.exists():
            export_bundle(tiny_source, path, precision=precision, dialect=dialect)
        return path

    return export


@pytest.fixture
def cuda_provider() -> None:
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA provider")


def on_onnxruntime(exported: Exported, name: str) -> Make:
    """An engine over a bundle that is called ``DIALECT-PRECISION``."""
    dialect, precision = name.split("-")
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if dialect == "ort" and version < (1, 32):
        pytest.skip("GroupQueryAttention takes query_seqlens from ONNX Runtime 1.32 on")
    return opened(exported(dialect, precision), "onnxruntime")


def on_pytorch(source: Path, dtype: torch.dtype) -> Make:
    def make(max_batch: int = 1) -> Engine:
        model = open_source(source).model(dtype, GPU)
        return open_model(model, max_batch=max_batch, hidden=(0, 1))

    return make


# --- the contract -----------------------------------------------------------------------------


class TestPyTorch(EngineContract):
    @pytest.fixture
    def make(self, tiny_source: Path) -> Make:
        return on_pytorch(tiny_source, torch.float32)


class TestPyTorchInHalf(EngineContract):
    tolerance = IN_HALF

    @pytest.fixture(params=[torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
    def make(self, request: pytest.FixtureRequest, tiny_source: Path) -> Make:
        return on_pytorch(tiny_source, request.param)


class TestPyTorchHead(EngineContract):
    exact = False

    @pytest.fixture
    def make(self, head_source: Source) -> Make:
        torch.manual_seed(0)
        shape = open_head(WRITTEN / "llama", head_source).head.shape
        head = Head(replace(shape, vocab_size=shape.input_vocab_size)).to(GPU)
        return lambda max_batch=1: Fed(PyTorchHeadEngine(head, max_batch=max_batch))


class TestOnnxRuntime(EngineContract):
    @pytest.fixture(params=["standard-fp32", "ort-fp32"])
    def make(self, request: pytest.FixtureRequest, exported: Exported, cuda_provider: None) -> Make:
        return on_onnxruntime(exported, request.param)


class TestOnnxRuntimeInHalf(EngineContract):
    """And in integers, which its GPU kernels multiply in 16 bits."""

    tolerance = IN_HALF

    @pytest.fixture(params=["standard-fp16", "standard-int8", "standard-int4", "ort-int4"])
    def make(self, request: pytest.FixtureRequest, exported: Exported, cuda_provider: None) -> Make:
        return on_onnxruntime(exported, request.param)


class TestTensorRT(EngineContract):
    """Plans for this GPU, where the TensorRT that is installed builds for it."""

    tolerance = IN_HALF

    @pytest.fixture(scope="class", params=["fp32", "fp16"])
    def planned(
        self,
        request: pytest.FixtureRequest,
        tiny_source: Path,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> Path:
        path = tmp_path_factory.mktemp("plans") / f"{request.param}.bundle"
        target = Target(max_batch=8, capacity=256)
        try:
            export_bundle(
                tiny_source, path, precision=request.param, dialect="standard", tensorrt=target
            )
        except (ExportError, MissingExtraError) as error:
            pytest.skip(str(error))
        return path

    @pytest.fixture
    def make(self, planned: Path) -> Make:
        return opened(planned, "tensorrt")


def opened(path: Path, engine: str) -> Make:
    bundle = Bundle.open(path)

    def make(max_batch: int = 1) -> Engine:
        options = EngineOptions(engine=engine, device=GPU, max_batch=max_batch)
        return load(bundle.path, bundle.manifest.target, options)

    return make


# --- devices ----------------------------------------------------------------------------------


def test_the_engine_says_where_it_runs(
    exported: Exported, tiny_source: Path, cuda_provider: None
) -> None:
    bundle = Bundle.open(exported("standard", "fp32"))
    for name in ("pytorch", "onnxruntime"):
        options = EngineOptions(engine=name, device=GPU, sources=(tiny_source,))
        engine = load(bundle.path, bundle.manifest.target, options)
        assert (engine.spec.name, engine.spec.device) == (name, GPU)
        engine.close()


@pytest.mark.parametrize("name", ["pytorch", "onnxruntime"])
def test_a_gpu_that_is_not_there(
    name: str, exported: Exported, tiny_source: Path, cuda_provider: None
) -> None:
    bundle = Bundle.open(exported("standard", "fp32"))
    options = EngineOptions(engine=name, device="cuda:99", sources=(tiny_source,))
    with pytest.raises(EngineError, match="device"):
        load(bundle.path, bundle.manifest.target, options)


@pytest.fixture
def device() -> Iterator[Device]:
    made = open_device(GPU)
    yield made
    made.close()


def test_memory_of_a_gpu(device: Device) -> None:
    """Zeros at first; copies there, back, within, and recorded."""
    table = np.arange(60, dtype=np.float32).reshape(6, 10)
    first, second = device.allocate(table.nbytes), device.allocate(table.nbytes)

    def held(address: int) -> np.ndarray:
        found = np.full_like(table, -1)
        device.download(found, address)
        return found

    assert not held(first).any()
    device.upload(first, table)
    assert np.array_equal(held(first), table)
    device.move(first + 8, first + 20, width=8, rows=6, pitch=40)
    moved = table.copy()
    moved[:, 2:4] = table[:, 5:7]
    assert np.array_equal(held(first), moved)
    again = device.capture(lambda: device.move(second, first, width=40, rows=6, pitch=40))
    assert not held(second).any()  # recorded, not done
    again()
    assert np.array_equal(held(second), moved)
    device.upload(first, table)
    again()
    assert np.array_equal(held(second), table)
    device.free(second)
    assert device.compute_capability == ".".join(map(str, torch.cuda.get_device_capability(0)))
    with pytest.raises(EngineError, match=r"cannot allocate .* MB: cudaErrorMemoryA"):
        device.allocate(1 << 46)
    assert np.array_equal(held(first), table)


# --- texts ------------------------------------------------------------------------------------


def answers(bundle: Path, **options: Any) -> list[tuple[int, ...]]:
    """Greedily, drawn, and greedily after a prompt longer than a graph's widest call."""
    with SpeculativeDecoder.from_bundle(bundle, target_device=GPU, **options) as decoder:
        found = [
            decoder.generate(prompt, max_tokens=60, sampling=sampling)
            for prompt, sampling in (
                (PROMPT, SamplingParams()),
                (PROMPT, SAMPLED),
                (PROMPT * 20, SamplingParams()),
            )
        ]
    if options["drafter"] != "none":
        assert sum(result.stats.drafted for result in found)
    return [result.token_ids for result in found]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime"])
def test_text_is_plain_decodings(
    engine: str, precision: str, exported: Exported, tiny_source: Path, request: Any
) -> None:
    if engine == "onnxruntime":
        request.getfixturevalue("cuda_provider")
    options = {"target_engine": engine, "sources": (tiny_source,)}
    bundle = exported("standard", precision)
    plain = answers(bundle, drafter="none", **options)
    for drafter in ("ngram", "auto"):
        assert answers(bundle, drafter=drafter, draft_tokens=4, **options) == plain, drafter


@pytest.mark.parametrize("engine", ["pytorch", "onnxruntime"])
def test_a_head_on_a_gpu(engine: str, head_target: Path, tmp_path: Path, request: Any) -> None:
    """Beside its target there, and its target on the CPU: the text of that target alone."""
    if engine == "onnxruntime":
        request.getfixturevalue("cuda_provider")
    path = tmp_path / "head.bundle"
    head = WRITTEN / "llama"
    export_bundle(head_target, path, precision="fp32", dialect="standard", draft=head)
    shared = {"sources": (head_target, head), "target_engine": engine}
    plain = answers(path, drafter="none", **shared)
    for device in (GPU, "cpu"):
        found = answers(
            path,
            drafter="head",
            draft_tokens=4,
            draft_engine=engine,
            draft_device=device,
            **shared,
        )
        assert found == plain, device
