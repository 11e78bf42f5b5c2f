"""Shared fixtures: tiny random checkpoints and their bundles, built once a session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from specplug.bundle import Bundle
from specplug.distilling.shards import Shards
from specplug.export import export_bundle
from specplug.export.from_onnx import export_onnx
from specplug.export.source import Source, open_source
from specplug.weights import MODELS, default_folder
from tests_support import native
from tests_support.distilling import learn, write_own_texts
from tests_support.heads import LAYERS, WRITTEN
from tests_support.tiny import write_checkpoint


@pytest.fixture(scope="session")
def tiny_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama checkpoint with random weights, a byte tokenizer and a chat template."""
    return write_checkpoint(tmp_path_factory.mktemp("source") / "tiny-llama")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """PyTorch on one thread: on a busy machine two wait for one another at every operator."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def model(tiny_source: Path) -> Any:
    """The tiny checkpoint as a model of transformers."""
    return transformers.AutoModelForCausalLM.from_pretrained(tiny_source)


@pytest.fixture(scope="session")
def tiny_bundles(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the tiny checkpoint by precision; the fp32 one has an int4 self-draft, some give
    hidden states."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for precision in ("fp32", "w8a8", "int4"):
        made[precision] = folder / f"{precision}.bundle"
        export_bundle(
            tiny_source,
            made[precision],
            precision=precision,
            self_draft="int4" if precision == "fp32" else None,
            hidden=(0, 1) if precision == "int4" else (),
        )
    for precision in ("fp32", "fp16", "int8", "int4"):
        made[f"standard-{precision}"] = folder / f"standard-{precision}.bundle"
        export_bundle(
            tiny_source,
            made[f"standard-{precision}"],
            precision=precision,
            dialect="standard",
            hidden=(0, 1) if precision in ("fp32", "fp16") else (),
        )
    return made


@pytest.fixture(scope="session")
def foreign_bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of the graphs that other tools made, by tool and precision."""
    folder = tmp_path_factory.mktemp("foreign")
    names = ("optimum", "genai-fp32", "genai-int4")
    for name in names:
        export_onnx(Path(__file__).parent / "data" / name, folder / f"{name}.bundle")
    return {name: folder / f"{name}.bundle" for name in names}


@pytest.fixture(scope="session")
def head_target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headed") / "tiny-target"
    return write_checkpoint(folder, num_hidden_layers=LAYERS)


@pytest.fixture(scope="session")
def head_source(head_target: Path) -> Source:
    return open_source(head_target)


@pytest.fixture(scope="session")
def head_bundles(head_target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    made = {}
    for name, head in (("fp32-ort", "llama"), ("w8a8-ort", "qwen3"), ("fp16-standard", "llama")):
        precision, dialect = name.split("-")
        made[name] = folder / f"{name}.bundle"
        export_bundle(
            head_target, made[name], precision=precision, dialect=dialect, draft=WRITTEN / head
        )
    return made


@pytest.fixture(scope="session")
def learned_texts(
    head_source: Source, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Shards, list[list[int]]]:
    """A target's answers to some prompts, each twice, and the prompts."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, size=12).tolist() for _ in range(6)]
    folder = tmp_path_factory.mktemp("texts")
    return write_own_texts(folder, head_source.reference(), prompts, 60, repeats=2), prompts


@pytest.fixture(scope="session")
def learned(
    head_target: Path,
    head_source: Source,
    learned_texts: tuple[Shards, list[list[int]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, list[list[int]]]:
    """A bundle whose head was trained on the target's answers to some prompts."""
    folder = tmp_path_factory.mktemp("learned")
    shards, prompts = learned_texts
    export_bundle(
        head_target,
        folder / "learned.bundle",
        precision="fp32",
        draft=learn(folder / "head", head_source, shards),
    )
    return folder / "learned.bundle", prompts


@pytest.fixture
def tiny_bundle(tiny_bundles: dict[str, Path]) -> Path:
    """The fp32 bundle with its int4 draft; not to be written to."""
    return tiny_bundles["fp32"]


@pytest.fixture(scope="session")
def native_build() -> None:
    """The C++ runtime, installed, with the tool that drives it."""
    try:
        native.build("release")
    except native.MissingToolError as error:
        pytest.skip(f"no C++ build: {error}")


@pytest.fixture(scope="session")
def real_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M in w8a8."""
    weights = default_folder() / MODELS["smollm2-135m"].filename
    if not weights.exists():
        pytest.skip(f"no {weights.name}: run `specplug pull smollm2-135m`, which needs the network")
    bundle = tmp_path_factory.mktemp("real") / "w8a8.bundle"
    export_bundle(weights, bundle, precision="w8a8")
    return bundle


@pytest.fixture
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then the slow ones, those on real weights last."""

    def cost(item: pytest.Item) -> int:
        return 2 if item.get_closest_marker("weights") else bool(item.get_closest_marker("slow"))

    items.sort(key=cost)
