"""Graphs without some of their layers: the same as exports of these layers, whatever the graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from specplug import Bundle, EngineOptions, ExportError, SpeculativeDecoder
from specplug.bundle import Component
from specplug.engines import load
from specplug.export import export_bundle
from specplug.export.judging import LayerJudge, Text, write_gated
from specplug.export.layers import layer_entries
from specplug.export.passes import GateLayers, SkipLayers
from specplug.export.skipping import make_draft, scratch
from specplug.skip_search import LONGEST, Runs
from specplug.widths import rows_of
from tests_support.families import NAMED, OTHERS
from tests_support.tiny import write_checkpoint

LAYERS = 4
TOKENS = np.random.default_rng(5).integers(0, 255, size=40)
GRAPHS = {
    "fp32": ("llama", "fp32", "ort"),
    "fp16": ("qwen2", "fp16", "ort"),
    "w8a8": ("llama", "w8a8", "ort"),
    "int4": ("llama", "int4", "ort"),
    "layer norms": ("gpt2", "int8", "ort"),
    "in parallel": ("falcon", "int8", "ort"),
    "norms after": ("gemma2", "w8a8", "ort"),
    "experts": ("qwen3_moe", "fp32", "ort"),
    "standard": ("gemma2", "fp32", "standard"),
    "standard int4": ("llama", "int4", "standard"),
}
"""Family of the tests' configurations, precision, dialect."""


def source_of(family: str, folder: Path, layers: int) -> Path:
    """A checkpoint of a family with more layers than its configuration has."""
    config = (NAMED | OTHERS)[family]
    more: dict[str, Any] = {"num_hidden_layers": layers}
    if "layer_types" in config:
        more["layer_types"] = config["layer_types"] * (layers // 2)
    if "n_layer" in config:
        more = {"num_hidden_layers": None, "n_layer": layers}
    return write_checkpoint(folder, model_type=family.partition(" ")[0], **config | more)


def logits(bundle: Path, component: Component) -> np.ndarray:
    """Of a draft alone, with a cache of its own."""
    engine = load(bundle, component, EngineOptions())
    found = np.concatenate([rows_of(engine, TOKENS[:24], 0), rows_of(engine, TOKENS[24:], 24)])
    engine.close()
    return found


def compare_with_export(
    source: Path,
    path: Path,
    kept: tuple[int, ...],
    precision: str,
    dialect: str,
    most: float = 0.0,
) -> None:
    how = f"layers={','.join(map(str, kept))}"
    manifest = export_bundle(source, path, precision=precision, dialect=dialect, self_draft=how)
    wanted = manifest.draft
    assert wanted is not None
    bundle = Bundle.open(path)
    with scratch(bundle, "cut") as graph:
        made = make_draft(bundle, kept, graph)
        assert np.abs(logits(path, made) - logits(path, wanted)).max() <= most
        assert made.cache == wanted.cache
        assert made.layers == wanted.layers
        # A family's last norm may be counted otherwise.
        assert made.parameters == pytest.approx(wanted.parameters, rel=0.01 if most else 0)
        whole = make_draft(bundle, range(manifest.target.cache.layers), graph)
        np.testing.assert_array_equal(logits(path, whole), logits(path, manifest.target))
    assert not [*path.rglob(".*")]


@pytest.mark.parametrize("name", GRAPHS)
def test_a_cut_graph_is_the_export_of_its_layers(name: str, tmp_path: Path) -> None:
    """Bit for bit, without the first layer and the last ones."""
    family, precision, dialect = GRAPHS[name]
    source = source_of(family, tmp_path / "source", LAYERS)
    compare_with_export(source, tmp_path / "made.bundle", (1,), precision, dialect)


@pytest.mark.parametrize("kept", [(0, 3), (0, 2, 3), (1, 3), (0, 1, 2)])
def test_any_layers_can_be_cut(kept: tuple[int, ...], tmp_path: Path) -> None:
    source = source_of("llama", tmp_path / "source", LAYERS)
    compare_with_export(source, tmp_path / "made.bundle", kept, "w8a8", "ort")


@pytest.mark.slow
@pytest.mark.parametrize("family", [*NAMED, *OTHERS])
def test_families(family: str, tmp_path: Path) -> None:
    """Of their two layers either alone; norms fused otherwise sum in another order."""
    source = source_of(family, tmp_path / "source", 2)
    for kept in ((0,), (1,)):
        compare_with_export(source, tmp_path / f"{kept}.bundle", kept, "fp32", "ort", 1e-4)


@pytest.mark.parametrize("name", ["fp32", "w8a8", "layer norms", "norms after", "standard"])
def test_a_judge_counts_what_real_rounds_would_accept(name: str, tmp_path: Path) -> None:
    """From the places where rounds began, place by place; rounds draft over the target's cache."""
    family, precision, dialect = GRAPHS[name]
    path, kept = tmp_path / "made.bundle", (0, 1, 3)
    source = source_of(family, tmp_path / "source", LAYERS)
    export_bundle(source, path, precision=precision, dialect=dialect, self_draft="layers=0-1,3")
    bundle = Bundle.open(path)
    texts, places = [], []
    tested, right = [0] * LONGEST, [0] * LONGEST
    with SpeculativeDecoder.from_bundle(path, drafter="self", draft_tokens=LONGEST) as decoder:
        decoder.stop_token_ids = frozenset()
        for number, prompt in enumerate([b"the quick brown fox", b"aaaa", bytes(range(70, 90))]):
            result = decoder.generate(list(prompt), max_tokens=50)
            tokens = np.array([*prompt, *result.token_ids])
            texts.append(Text(tokens, len(prompt)))
            at, rounds = len(prompt), result.stats
            for drafted, accepted in zip(
                rounds.drafted_per_round, rounds.accepted_per_round, strict=True
            ):
                if drafted == LONGEST:  # not at the answer's end, where fewer are drafted
                    places.append((number, at))
                    for place in range(min(drafted, accepted + 1)):
                        tested[place] += 1
                        right[place] += place < accepted
                at += accepted + 1
    with scratch(bundle, "gated") as graph:
        target = bundle.manifest.target
        write_gated(path / target.graph, graph)
        judge = LayerJudge(graph, target, EngineOptions(), texts)
        every = judge.places(1 << 20, 0)
        assert len(every) == sum(len(text.starts) for text in texts)
        assert set(places) <= set(every)
        assert judge.places(9, 1) == judge.places(9, 1) != judge.places(9, 2)
        found = judge(kept, places)
        whole = judge(tuple(range(LAYERS)), every)
        judge.close()
    assert sum(right)
    if judge._packs:  # who takes trees can be told who sees what
        assert found == Runs(tuple(tested), tuple(right))
    assert min(whole.chances) > 0.98  # but for the order of sums


def test_passes_say_whether_they_changed_anything(tiny_bundles: dict[str, Path]) -> None:
    model = ir.load(tiny_bundles["w8a8"] / "target/model.onnx")
    assert len(layer_entries(model.graph)) == 3
    assert GateLayers()(model).modified
    assert not GateLayers()(model).modified
    assert not SkipLayers([0, 1])(model).modified
    model = ir.load(tiny_bundles["w8a8"] / "target/model.onnx")
    assert SkipLayers([1])(model).modified
    caches = [value.name for value in model.graph.inputs if value.name.startswith("past")]
    assert caches == ["past_key_values.0.key", "past_key_values.0.value"]


def test_graphs_of_other_tools(foreign_bundles: dict[str, Path], tmp_path: Path) -> None:
    """onnxruntime-genai's layers are found by their shape, too."""
    path = Path(shutil.copytree(foreign_bundles["genai-int4"], tmp_path / "genai.bundle"))
    bundle = Bundle.open(path)
    layers = bundle.manifest.target.cache.layers
    with scratch(bundle, "cut") as graph:
        made = make_draft(bundle, (layers - 1,), graph)
        assert logits(path, made).shape == (len(TOKENS), bundle.manifest.target.vocab_size)


def test_a_graph_of_another_form_is_refused() -> None:
    sketch = ir.Model(
        ir.Graph(
            [ir.val("input_ids", dtype=ir.DataType.INT64, shape=["b", "s"])],
            [],
            nodes=[],
            opset_imports={"": 21},
        ),
        ir_version=10,
    )
    node = ir.node("Identity", [sketch.graph.inputs[0]])
    sketch.graph.append(node)
    node.outputs[0].name = "logits"
    sketch.graph.outputs.append(node.outputs[0])
    with pytest.raises(ExportError, match=r"no layer reads the cache.*--self-draft layers="):
        layer_entries(sketch.graph)
