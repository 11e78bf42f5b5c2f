"""TensorRT: what it builds for real, and the adapter over a double of its runtime."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from specplug import Bundle, EngineOptions, SpeculativeDecoder, Step
from specplug.bundle import TensorRTPlan
from specplug.drafters import NgramDrafter
from specplug.engines import load, tensorrt_library
from specplug.engines.contract import rows
from specplug.engines.cuda_memory import CudaDevice, open_device
from specplug.engines.padded import PaddedEngine
from specplug.engines.tensorrt import TensorRTEngine, _Layout, find_plan
from specplug.export import export_bundle, plan_export, tensorrt
from specplug.export.tensorrt import Target
from specplug.types import EngineError, ExportError, MissingExtraError
from tests_support.command import specplug
from tests_support.cuda_double import HostRuntime
from tests_support.tensorrt_double import DataType, HostDevice, TensorIOMode, library, write_plan

GPU_CAPABILITIES = ("8.9", "12.0")


@pytest.fixture(scope="module")
def built(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Exported for two GPUs by the real TensorRT-RTX, on this machine without one."""
    path = tmp_path_factory.mktemp("tensorrt") / "tiny.bundle"
    told: list[str] = []
    export_bundle(
        tiny_source,
        path,
        precision="fp16",
        dialect="standard",
        tensorrt=Target(GPU_CAPABILITIES, max_batch=2, capacity=512),
        report=told.append,
    )
    assert any("building the target with TensorRT" in stage for stage in told)
    return Bundle.open(path)


def test_plans_for_other_machines(built: Bundle) -> None:
    target = built.manifest.target
    assert target.engine == "tensorrt"
    assert [plan.compute_capability for plan in target.plans] == [*GPU_CAPABILITIES]
    here = tensorrt_library.find_library()
    for plan in target.plans:
        assert (plan.library, plan.version) == (here.name, here.version)
        assert here.version in plan.path
        assert plan.compute_capability.replace(".", "") in plan.path
        assert (plan.max_batch, plan.capacity) == (2, 512)
        assert (built.path / plan.path).stat().st_size > 100_000


def test_the_same_bundle_runs_in_onnx_runtime(built: Bundle) -> None:
    with SpeculativeDecoder.from_bundle(
        built.path, drafter="ngram", target_engine="onnxruntime"
    ) as decoder:
        assert len(decoder.generate("hello", max_tokens=8).token_ids) == 8


class NetworkView:
    """A network that the real parser made, with the profiles it is built with, as an engine."""

    def __init__(self, graph: Path, target: Target) -> None:
        found = tensorrt_library.find_library()
        self._api = found.api
        self._kept = [messages := tensorrt._messages(found.api), found.api.Builder(messages)]
        proto = tensorrt.with_capacity(graph, target.capacity)
        network = tensorrt.parse(found, self._kept[1], messages, proto, graph)
        self._kept.append(network)
        self.profiles = tensorrt.profiles(self._kept[1], network, target)
        inputs = [network.get_input(i) for i in range(network.num_inputs)]
        outputs = [network.get_output(i) for i in range(network.num_outputs)]
        self.values = {value.name: value for value in (*inputs, *outputs)}
        self.inputs = {value.name for value in inputs}
        self.num_io_tensors = len(self.values)
        self.num_optimization_profiles = len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return [*self.values][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self.inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        types = self._api.DataType
        names = {types.FLOAT: "FLOAT", types.HALF: "HALF", types.INT64: "INT64"}
        return DataType[names[self.values[name].dtype]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        return [tuple(shape) for shape in self.profiles[profile].get_shape(name)]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
def test_what_is_built_is_what_the_adapter_binds(
    precision: str, tiny_bundles: dict[str, Path]
) -> None:
    """Names, types, shapes and ranges, read back from the network of the real parser."""
    bundle = Bundle.open(tiny_bundles[f"standard-{precision}"])
    target = bundle.manifest.target
    view = NetworkView(bundle.path / target.graph, Target(("8.9",), max_batch=4, capacity=384))
    api = SimpleNamespace(TensorIOMode=TensorIOMode, DataType=DataType)
    layout = _Layout(view, api)
    layout.check(target.vocab_size, 384, 4)
    cache = target.cache
    assert (layout.layers, layout.heads, layout.head_size) == (
        cache.layers,
        cache.heads,
        cache.head_size,
    )
    assert layout.itemsize == np.dtype(cache.dtype).itemsize
    assert layout.capacity == 384
    for name, dtype in (
        ("input_ids", DataType.INT64),
        ("position_ids", DataType.INT64),
        ("write_indices", DataType.INT64),
        ("scores_from", DataType.INT64),
        ("attention_mask", DataType.FLOAT),
        ("next_token", DataType.INT64),
        ("logits", DataType.FLOAT),
    ):
        assert view.get_tensor_dtype(name) == dtype
    assert set(layout.cache_addresses(0, 4)) == {
        n for n in view.values if ".key" in n or ".value" in n
    }
    for batch, width in itertools.product((1, 3, 4), (1, 2, 5, 16, 17, 300, layout.widest)):
        profile = layout.profile(width)
        for name, shape in layout.shapes(batch, width).items():
            low, _, high = view.get_tensor_profile_shape(name, profile)
            assert all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
    assert [layout.profile(width) for width in (1, 2, 16, 17)] == [0, 1, 1, 2]


def make(bundle: Bundle, folder: Path, **options: int) -> tuple[TensorRTEngine, HostDevice]:
    target, device = bundle.manifest.target, HostDevice()
    write_plan(bundle.path / target.graph, folder / "plan", 256, [(2, 1), (2, 16), (2, 64)])
    engine = TensorRTEngine(
        (folder / "plan").read_bytes(),
        library=library(),
        device=device,
        **{"vocab_size": target.vocab_size, "max_length": 256, "max_batch": 1} | options,
    )
    return engine, device


@pytest.fixture
def standard(tiny_bundles: dict[str, Path]) -> Bundle:
    return Bundle.open(tiny_bundles["standard-fp32"])


def test_greedy_decoding_moves_twelve_bytes_a_token(standard: Bundle, tmp_path: Path) -> None:
    """The best token and its score; repeated calls are run as graphs."""
    engine, device = make(standard, tmp_path)
    tokens = np.arange(5)[None]
    engine.forward(Step(tokens=tokens, past=np.array([0]))).argmax()
    before = device.downloaded_bytes
    for past in (5, 10, 15):
        engine.forward(Step(tokens=tokens, past=np.array([past]))).argmax()
    assert device.downloaded_bytes - before == 3 * 5 * 12
    assert device.graphs_run == 3
    engine.close()
    assert not device.held


def test_text_is_that_of_onnx_runtime(standard: Bundle, tmp_path: Path) -> None:
    engine, _ = make(standard, tmp_path)
    prompt = list(range(30, 60))
    texts = []
    other = load(standard.path, standard.manifest.target, EngineOptions())
    for target in (PaddedEngine(engine), other):
        with SpeculativeDecoder(target=target, drafter=NgramDrafter()) as decoder:
            texts.append(decoder.generate(prompt, max_tokens=40).token_ids)
    assert texts[0] == texts[1]


@pytest.mark.parametrize("batch", [1, 2])
def test_keep_moves_every_layer_and_head(standard: Bundle, tmp_path: Path, batch: int) -> None:
    engine, device = make(standard, tmp_path, max_batch=batch)
    layout = engine._layout
    shape = (layout.layers, 2, batch, layout.heads, layout.capacity, layout.head_size)
    held = np.frombuffer(device.held[engine._cache], dtype=np.float32).reshape(shape)
    held[...] = np.random.default_rng(0).normal(size=shape)
    expected = held.copy()
    row = batch - 1
    expected[:, :, row, :, 20:23] = held[:, :, row][:, :, :, [20, 22, 25]]
    engine.keep(row, 20, [0, 2, 5])
    np.testing.assert_array_equal(held, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 3}, "max_batch 3: the plan takes 2"),
        ({"max_length": 257}, "max_length 257: the plan holds 256"),
        ({"vocab_size": 100}, "260 logits a token, not 100"),
    ],
)
def test_a_use_that_the_plan_is_not_for(
    options: dict[str, int], message: str, standard: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=message):
        make(standard, tmp_path, **options)


def test_a_damaged_plan(standard: Bundle) -> None:
    with pytest.raises(EngineError, match=r"tensorrt 10\.9 cannot load the plan"):
        TensorRTEngine(
            b"no plan", library=library(), device=HostDevice(), vocab_size=260, max_length=256
        )


def test_plans_are_for_one_version_and_one_gpu() -> None:
    made = {"library": "tensorrt", "max_batch": 1, "capacity": 64}
    plans = [
        TensorRTPlan(path="a", version="10.9", compute_capability="8.9", **made),
        TensorRTPlan(path="b", version="10.9", compute_capability="9.0", **made),
    ]
    assert find_plan(plans, library("10.9"), "9.0").path == "b"
    for found, capability in ((library("10.8"), "9.0"), (library("10.9"), "8.6")):
        with pytest.raises(EngineError, match=r"plans are for tensorrt 10\.9 on 8\.9, .*on 9\.0"):
            find_plan(plans, found, capability)
    with pytest.raises(EngineError, match=r"tensorrt-rtx 10\.9 on 9\.0: export again"):
        find_plan(plans, replace(library("10.9"), name="tensorrt-rtx"), "9.0")


def test_no_gpu_here(built: Bundle) -> None:
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(
        EngineError, match=r"no GPU here that CUDA can use: cudaError.* onnxruntime runs the same"
    ):
        load(built.path, built.manifest.target, EngineOptions())
    with pytest.raises(EngineError, match="device 'cpu': TensorRT runs on cuda"):
        open_device("cpu")


def test_no_plan(standard: Bundle) -> None:
    with pytest.raises(EngineError, match=r"no TensorRT plan: .* --engine tensorrt"):
        load(standard.path, standard.manifest.target, EngineOptions(engine="tensorrt"))


def test_no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_library, "_KNOWN", (("tensorrt", ("tensorrt_that_is_not_here",)),))
    tensorrt_library.find_library.cache_clear()
    with pytest.raises(MissingExtraError, match=r"pip install 'specplug\[tensorrt\]'"):
        tensorrt_library.find_library()
    tensorrt_library.find_library.cache_clear()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compute-capability", "9.9"], "builds for compute capabilities 7.5, 8.0, .*, not 9.9"),
        (["--compute-capability", "ada"], "compute capability 'ada': write it as NVIDIA does"),
        (["--compute-capability", "8.9", "--max-batch", "0"], "--max-batch 0: need 1 to 256"),
        (["--compute-capability", "8.9", "--capacity", "8"], "--capacity 8: need 32 or more"),
        (["--compute-capability", "8.9", "--dialect", "ort"], "--dialect ort: TensorRT builds"),
        (
            ["--compute-capability", "8.9", "--precision", "w8a8"],
            "w8a8 has no place in the standard",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_at_once(
    options: list[str], message: str, tiny_source: Path, tmp_path: Path
) -> None:
    output = tmp_path / "b.bundle"
    done = specplug("export", tiny_source, "-o", output, "--engine", "tensorrt", *options)
    assert done.returncode == 1
    assert re.search(message, done.stderr), done.stderr
    assert not list(tmp_path.iterdir())


def test_options_of_tensorrt_are_for_tensorrt(tiny_source: Path, tmp_path: Path) -> None:
    done = specplug("export", tiny_source, "-o", tmp_path / "b", "--capacity", "64")
    assert "are for --engine tensorrt" in done.stderr


def test_tensorrt_alone_builds_for_its_own_gpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt, "find_library", lambda: library())
    with pytest.raises(ExportError, match="builds for the GPU of its machine only"):
        tensorrt.resolve(Target(("8.9",)))


def test_a_gpu_that_tensorrt_rtx_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as an H100, though it is this machine's own."""
    monkeypatch.setattr(tensorrt, "_own_capability", lambda library: "9.0")
    with pytest.raises(ExportError, match=r"builds for compute capabilities .*8\.9.*, not 9\.0"):
        tensorrt.resolve(Target())


def test_a_plan_of_plans(tiny_source: Path, tmp_path: Path) -> None:
    """``--plan`` names the files that the export writes, and comes close to their sizes."""
    what = {"precision": "int4", "dialect": "standard", "tensorrt": Target(("8.9",), capacity=64)}
    planned = plan_export(tiny_source, tmp_path / "b.bundle", **what)
    export_bundle(tiny_source, tmp_path / "b.bundle", **what)
    written = {
        str(file.relative_to(tmp_path / "b.bundle")): file.stat().st_size
        for file in (tmp_path / "b.bundle").rglob("*")
        if file.is_file()
    }
    assert set(planned.files) == set(written)
    data = "target/model.onnx.data"
    assert planned.files[data] == pytest.approx(written[data], rel=0.02)


def test_the_seam_to_cuda() -> None:
    """Over a runtime on the host: no GPU has run it here."""
    runtime = HostRuntime()
    device = CudaDevice(runtime, 0)
    assert (device.name, device.compute_capability, device.stream) == ("cuda:0", "8.9", 7)
    address = device.allocate(64)
    sent = np.arange(16, dtype=np.int32)
    device.upload(address, sent)
    device.move(address, address + 8, width=4, rows=2, pitch=32)
    found = np.empty_like(sent)
    device.download(found, address)
    sent[[0, 8]] = sent[[2, 10]]
    np.testing.assert_array_equal(found, sent)
    device.capture(lambda: None)()
    assert runtime.launched == ["runnable"]
    with pytest.raises(EngineError, match="allocate 2 MB: cudaErrorMemoryAllocation"):
        device.allocate(2 << 20)
    with pytest.raises(EngineError, match="cuda:1: this machine has 1 GPUs"):
        CudaDevice(runtime, 1)
    device.close()
    assert not runtime.held


def test_the_seam_calls_what_cuda_has() -> None:
    """Every function and constant by its name in NVIDIA's bindings."""
    from cuda.bindings import runtime

    source = (Path(__file__).parent.parent / "engines" / "cuda_memory.py").read_text()
    names = set(re.findall(r"\b(cuda[A-Z]\w+)\b", source))
    assert len(names) > 20
    holders = (
        runtime,
        runtime.cudaDeviceAttr,
        runtime.cudaMemcpyKind,
        runtime.cudaStreamCaptureMode,
    )
    assert not [name for name in names if not any(hasattr(h, name) for h in holders)]


def test_prompts_longer_than_a_profile(standard: Bundle, tmp_path: Path) -> None:
    engine, _ = make(standard, tmp_path)
    tokens = np.random.default_rng(0).integers(0, 260, size=150).tolist()
    other = load(standard.path, standard.manifest.target, EngineOptions())
    for scores_from in (0, 60, 149):
        found = rows(engine, tokens, 0, scores_from)
        np.testing.assert_allclose(found, rows(other, tokens, 0, scores_from), atol=1e-4)
        step = Step(tokens=np.array([tokens]), past=np.array([0]), scores_from=scores_from)
        scores = engine.forward(step)
        assert np.array_equal(scores.argmax()[0], found.argmax(-1))
        hidden = other.forward(step).hidden("hidden_states")
        np.testing.assert_allclose(scores.hidden("hidden_states"), hidden, atol=1e-4)
