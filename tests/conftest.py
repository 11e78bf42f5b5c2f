"""Shared fixtures: tiny random checkpoints and their bundles, built once a run."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"
# What is computed here is tiny: more threads, of processes beside one another, spin for nothing.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fcntl
import gc
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import settings

from specplug.batching import BatchDecoder
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
from tests_support.tokenizer_kinds import LANGUAGE_MODELS, Kind, made_kind

settings.register_profile("tests", deadline=None)  # how long anything takes proves nothing
settings.load_profile("tests")

Made = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A folder of a name, filled by whichever of the processes of this run asks first.

    Nobody writes to it afterwards.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / f"made-{name}", root / f"made-{name}.done"
        with (root / f"made-{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def tiny_source(made_once: Made) -> Path:
    """A Llama checkpoint with random weights, a byte tokenizer and a chat template."""
    return (
        made_once("source", lambda folder: write_checkpoint(folder / "tiny-llama")) / "tiny-llama"
    )


@pytest.fixture(scope="session", params=LANGUAGE_MODELS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of tokenizer that models have."""
    return made_kind(request.param)


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


TINY: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "self_draft": "int4"},
    "w8a8": {"precision": "w8a8"},
    "int4": {"precision": "int4", "hidden": (0, 1)},
    "standard-fp32": {"precision": "fp32", "dialect": "standard", "hidden": (0, 1)},
    "standard-fp16": {"precision": "fp16", "dialect": "standard", "hidden": (0, 1)},
    "standard-int8": {"precision": "int8", "dialect": "standard"},
    "standard-int4": {"precision": "int4", "dialect": "standard"},
}


@pytest.fixture(scope="session")
def tiny_bundles(tiny_source: Path, made_once: Made) -> dict[str, Path]:
    """Bundles of the tiny checkpoint by precision; the fp32 one has an int4 self-draft, some give
    hidden states."""

    def export(folder: Path) -> None:
        for name, options in TINY.items():
            export_bundle(tiny_source, folder / f"{name}.bundle", **options)

    folder = made_once("bundles", export)
    return {name: folder / f"{name}.bundle" for name in TINY}


@pytest.fixture(scope="session")
def foreign_bundles(made_once: Made) -> dict[str, Path]:
    """Bundles of the graphs that other tools made, by tool and precision."""
    names = ("optimum", "genai-fp32", "genai-fp16", "genai-int4")

    def export(folder: Path) -> None:
        for name in names:
            export_onnx(Path(__file__).parent / "data" / name, folder / f"{name}.bundle")

    folder = made_once("foreign", export)
    return {name: folder / f"{name}.bundle" for name in names}


@pytest.fixture(scope="session")
def head_target(made_once: Made) -> Path:
    folder = made_once(
        "headed",
        lambda folder: write_checkpoint(folder / "tiny-target", num_hidden_layers=LAYERS),
    )
    return folder / "tiny-target"


@pytest.fixture(scope="session")
def head_source(head_target: Path) -> Source:
    return open_source(head_target)


@pytest.fixture(scope="session")
def head_model(head_source: Source) -> Any:
    """The target with its weights in memory: the exporter's own reads them at every call."""
    return head_source.model(torch.float32, "cpu")


@pytest.fixture(scope="session")
def head_bundles(head_target: Path, made_once: Made) -> dict[str, Path]:
    heads = {"fp32-ort": "llama", "w8a8-ort": "qwen3", "fp16-standard": "llama"}

    def export(folder: Path) -> None:
        for name, head in heads.items():
            precision, dialect = name.split("-")
            export_bundle(
                head_target,
                folder / f"{name}.bundle",
                precision=precision,
                dialect=dialect,
                draft=WRITTEN / head,
            )

    folder = made_once("heads", export)
    return {name: folder / f"{name}.bundle" for name in heads}


@pytest.fixture(scope="session")
def learned_texts(head_model: Any, made_once: Made) -> tuple[Shards, list[list[int]]]:
    """A target's answers to some prompts, each twice, and the prompts."""
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, size=12).tolist() for _ in range(6)]
    folder = made_once(
        "texts",
        lambda folder: write_own_texts(folder, head_model, prompts, 60, repeats=2),
    )
    return Shards(folder), prompts


@pytest.fixture(scope="session")
def learned(
    head_target: Path,
    head_source: Source,
    learned_texts: tuple[Shards, list[list[int]]],
    made_once: Made,
) -> tuple[Path, list[list[int]]]:
    """A bundle whose head was trained on the target's answers to some prompts."""
    shards, prompts = learned_texts

    def export(folder: Path) -> None:
        head = learn(folder / "head", head_source, shards)
        export_bundle(head_target, folder / "learned.bundle", precision="fp32", draft=head)

    return made_once("learned", export) / "learned.bundle", prompts


@pytest.fixture
def tiny_bundle(tiny_bundles: dict[str, Path]) -> Path:
    """The fp32 bundle with its int4 draft; not to be written to."""
    return tiny_bundles["fp32"]


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    """The fp32 bundle in two rows, four tokens drafted at a time."""
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2, draft_tokens=4) as decoder:
        yield decoder


@pytest.fixture(scope="session")
def native_build() -> None:
    """The C++ runtime, installed, with the tool that drives it."""
    try:
        native.build("release")
    except native.MissingToolError as error:
        pytest.skip(f"no C++ build: {error}")


@pytest.fixture(scope="session")
def real_bundle(made_once: Made) -> Path:
    """SmolLM2-135M in w8a8."""
    weights = default_folder() / MODELS["smollm2-135m"].filename
    if not weights.exists():
        pytest.skip(f"no {weights.name}: run `specplug pull smollm2-135m`, which needs the network")
    folder = made_once(
        "real", lambda folder: export_bundle(weights, folder / "w8a8.bundle", precision="w8a8")
    )
    return folder / "w8a8.bundle"


@pytest.fixture
def opened(tiny_bundle: Path) -> Bundle:
    return Bundle.open(tiny_bundle)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, then the slow ones, those on real weights last."""

    def cost(item: pytest.Item) -> int:
        return 2 if item.get_closest_marker("weights") else bool(item.get_closest_marker("slow"))

    items.sort(key=cost)


def pytest_collection_finish() -> None:
    """Collections of garbage, one an export, need not look at all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Under ``--dist loadfile``: a file's fast tests go to one process, its slow ones to one."""
    from xdist.scheduler import LoadFileScheduling

    class RunsOfFiles(LoadFileScheduling):
        """Tests that come after one another and are of one file; those that build C++ are one."""

        def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
            files = [nodeid.partition("::")[0] for nodeid in collection]
            files = [re.sub("test_native.*", "test_native", file) for file in files]
            starts = [int(a != b) for a, b in itertools.pairwise(["", *files])]
            self._runs = dict(zip(collection, itertools.accumulate(starts), strict=True))
            super().add_node_collection(node, collection)

        def _split_scope(self, nodeid: str) -> str:
            return str(self._runs[nodeid])

    return RunsOfFiles(config, log) if config.getoption("dist") == "loadfile" else None
