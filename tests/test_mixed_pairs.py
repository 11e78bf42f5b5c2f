"""Target and draft on different engines: the same text in every combination."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from specplug import SamplingParams, SpeculativeDecoder
from specplug.export import export_bundle
from specplug.types import EngineError
from tests_support.tiny import write_checkpoint

ENGINES = ("onnxruntime", "pytorch")
PROMPT = "one two three one two"
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=5)


@pytest.fixture(scope="module")
def pair(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A bundle of two checkpoints, and where they are."""
    folder = tmp_path_factory.mktemp("pair")
    draft = write_checkpoint(folder / "draft", seed=3, hidden_size=32)
    export_bundle(tiny_source, folder / "pair.bundle", precision="fp32", draft=draft)
    return folder / "pair.bundle", [tiny_source, draft]


def answers(pair: tuple[Path, list[Path]], **options: Any) -> list[tuple[int, ...]]:
    bundle, sources = pair
    with SpeculativeDecoder.from_bundle(bundle, sources=tuple(sources), **options) as decoder:
        found = [
            decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
            for sampling in (SamplingParams(), SAMPLED)
        ]
        if "drafter" in options:
            assert all(result.stats.drafted for result in found)
        return [result.token_ids for result in found]


def test_every_combination_gives_the_same_text(pair: tuple[Path, list[Path]]) -> None:
    plain = answers(pair, draft_tokens=0)
    assert plain[0] != plain[1]
    for target, draft in product(ENGINES, ENGINES):
        options = {"target_engine": target, "draft_engine": draft}
        assert answers(pair, drafter="draft", draft_tokens=4, **options) == plain, options


def test_a_source_that_is_not_there(pair: tuple[Path, list[Path]]) -> None:
    bundle, (target, _) = pair
    with pytest.raises(EngineError, match=r"the source 'draft' .* is not among .*--source"):
        answers((bundle, [target]), drafter="draft", draft_engine="pytorch")


def test_some_layers_are_not_the_source(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "layers.bundle"
    export_bundle(tiny_source, bundle, precision="fp32", self_draft="layers=0-0")
    with pytest.raises(EngineError, match="a draft of some of its layers"):
        answers((bundle, [tiny_source]), drafter="draft", draft_engine="pytorch")


def test_a_precision_that_pytorch_has_not(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "int8.bundle"
    export_bundle(tiny_source, bundle, precision="int8")
    with pytest.raises(EngineError, match=r"computes in fp32, fp16, bf16, and .* in int8"):
        answers((bundle, [tiny_source]), target_engine="pytorch")


@pytest.mark.parametrize(
    ("engine", "device", "message"),
    [
        ("onnxruntime", "cuda:1", "has no CUDA provider, only .*pip install 'specplug.gpu.'"),
        ("onnxruntime", "tpu", "runs on cpu, cuda, cuda:1"),
        ("onnxruntime", "cuda:x", "runs on cpu, cuda, cuda:1"),
        ("pytorch", "cuda:99", "PyTorch cannot use it here: "),
        ("pytorch", "tpu", "PyTorch cannot use it here: "),
    ],
)
def test_devices_that_are_not_there(
    engine: str,
    device: str,
    message: str,
    pair: tuple[Path, list[Path]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"], raising=True
    )
    for which in ("target", "draft"):
        options = {f"{which}_engine": engine, f"{which}_device": device, "drafter": "draft"}
        with pytest.raises(EngineError, match=f"device '{device}'.*{message}"):
            answers(pair, **options)
