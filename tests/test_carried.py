"""GGUF blocks in graphs: the same values as gguf's own dequantization, bit for bit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import onnx_ir as ir
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import quants

from specplug import EngineOptions, ExportError, SpeculativeDecoder
from specplug.engines.ort_session import open_session
from specplug.export import export_bundle, graphs
from specplug.export.carried import CarriedBlocks
from specplug.export.passes import PadAttention, QuantizeNBits
from specplug.export.source import open_source
from test_export import PROMPT, write_gguf
from test_passes import FLOAT, Sketch, run

RNG = np.random.default_rng(3)


def write_tensors(path: Path, **kinds: Kind) -> dict[str, np.ndarray]:
    """A file of matrices of 24 rows and 256 inputs, one a type; what gguf reads back from it."""
    writer = gguf.GGUFWriter(path, "llama")
    values = {}
    for name, kind in kinds.items():
        matrix = RNG.normal(size=(24, 256)).astype(np.float32)
        matrix[5] = 0
        if kind in (Kind.Q4_K, Kind.Q6_K):  # gguf reads these, and does not write them
            data = RNG.integers(0, 256, size=(24, gguf.GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)
            tail = slice(208, 210) if kind == Kind.Q6_K else slice(0, 4)
            data[:, tail] = np.full((24, (tail.stop - tail.start) // 2), 2e-3, "<f2").view(np.uint8)
        else:
            data = quants.quantize(matrix, kind)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind)
        values[name] = quants.dequantize(data, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


@pytest.mark.parametrize(
    ("kinds", "bits"),
    [
        ((Kind.Q4_0,), 4),
        ((Kind.Q8_0,), 8),
        ((Kind.Q4_0, Kind.Q4_0), 4),
        ((Kind.Q4_0, Kind.Q8_0), 8),
    ],
)
def test_blocks_are_the_files_own(kinds: tuple[Kind, ...], bits: int, tmp_path: Path) -> None:
    """Packed along the outputs and their rows permuted, as layers of a graph are."""
    path = tmp_path / "m.gguf"
    values = write_tensors(path, **{f"t{i}": kind for i, kind in enumerate(kinds)})
    rows = np.concatenate(list(values.values()))
    rows = rows[RNG.permutation(len(rows))]
    carried = CarriedBlocks(path)
    blocks = carried.blocks(rows.T)
    assert blocks is not None
    assert blocks.bits == bits
    np.testing.assert_array_equal(blocks.values(), rows)
    assert carried.rounded() == {}
    assert "rounded" not in carried.summary()


@pytest.mark.parametrize("kinds", [(Kind.Q4_1,), (Kind.Q4_K,), (Kind.Q4_K, Kind.Q4_0, Kind.Q4_1)])
def test_minima_are_kept_as_offsets(kinds: tuple[Kind, ...], tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = write_tensors(path, **{f"t{i}": kind for i, kind in enumerate(kinds)})
    rows = np.concatenate(list(values.values()))
    carried = CarriedBlocks(path)
    blocks = carried.blocks(rows.T)
    assert blocks is not None
    assert blocks.bits == 4
    assert carried.rounded() == {}
    np.testing.assert_allclose(blocks.values(), rows, rtol=1e-6, atol=1e-6)

    # Through the kernel, where an offset is the weight of a sum of inputs, in 4 bits.
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["n", 256])
    weight = sketch.weight("w", 256, len(rows))
    weight.const_value = ir.tensor(np.ascontiguousarray(rows.T), name="w")
    sketch.output(sketch.node("MatMul", x, weight), "y")
    model = sketch.model()
    assert QuantizeNBits(rounding=carried.rounding, accuracy_level=0)(model).modified
    found = run(model, x=np.eye(256, dtype=np.float32))[0].T
    assert blocks.offsets is not None
    most = np.ptp(blocks.offsets, axis=1, keepdims=True) / 15
    error = np.abs(found - rows)
    assert (error <= most + 1e-6).all()


@pytest.mark.parametrize("kind", [Kind.Q4_1, Kind.Q4_K, Kind.Q6_K])
def test_other_blocks_are_rounded_again_and_told(kind: Kind, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = write_tensors(path, kept=Kind.Q8_0, other=kind)
    rows = np.concatenate(list(values.values()))
    carried = CarriedBlocks(path)
    blocks = carried.blocks(rows.T)
    assert blocks is not None
    assert blocks.bits == 8
    np.testing.assert_array_equal(blocks.values()[:24], values["kept"])
    error = np.abs(blocks.values() - rows).reshape(48, 8, 32)
    assert (error <= 0.501 * np.abs(blocks.scales)[..., None]).all()
    assert error[24:].any()
    assert carried.rounded() == {kind.name: 1}
    assert "kept for 1 of type Q8_0; rounded again, in 8 bits" in carried.summary()
    assert f"1 of type {kind.name}" in carried.summary()


def test_floating_point_stays_and_strangers_are_rounded(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    values = write_tensors(path, half=Kind.F16, kept=Kind.Q4_0)
    carried = CarriedBlocks(path)
    assert carried.blocks(values["half"].T) is None
    assert carried.rounded() == {}
    changed = values["kept"] * np.float32(1.5)  # by the exporter, say
    blocks = carried.blocks(changed.T)
    assert blocks is not None
    assert blocks.bits == 8
    np.testing.assert_allclose(blocks.values(), changed, atol=0.03)
    assert carried.rounded() == {"changed": 1}


def test_only_gguf_files(tiny_source: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"keeps the quantization of a GGUF file, and .* is none"):
        export_bundle(tiny_source, tmp_path / "b.bundle", precision="gguf")


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q8_0])
def test_a_graph_of_carried_blocks_is_its_source(
    kind: Kind, tiny_source: Path, tmp_path: Path
) -> None:
    """Rows of query and key in llama.cpp's order, packed QKV and gate/up, activations in fp32."""
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_source, path, lambda name: kind)
    graphs.save(graphs.build_fp32(open_source(path)), tmp_path / "fp32")
    feeds = {
        "input_ids": np.array([PROMPT]),
        "seqlens_k": np.array([len(PROMPT) - 1], np.int32),
        "total_sequence_length": np.array(len(PROMPT) + 1, np.int32),
        "attention_bias": np.zeros((1, 1, len(PROMPT), len(PROMPT) + 1), np.float32),
        "position_ids": np.arange(len(PROMPT))[None],
        "query_seqlens": np.array([len(PROMPT)], np.int32),
        "scores_from": np.array([0]),
        "attention_rows": np.array(2),
    } | {
        f"past_key_values.{layer}.{part}": np.zeros((1, 2, len(PROMPT) + 1, 16), np.float32)
        for layer in range(2)
        for part in ("key", "value")
    }

    def logits(folder: Path) -> np.ndarray:
        session = open_session(folder / graphs.GRAPH, EngineOptions())
        names = {value.name for value in session.get_inputs()}
        return session.run(["logits"], {k: v for k, v in feeds.items() if k in names})[0]

    expected = logits(tmp_path / "fp32")
    for level, tolerance in ((0, 1e-5), (4, 0.1)):
        graph = graphs.load(tmp_path / "fp32")
        carried = CarriedBlocks(path)
        QuantizeNBits(rounding=carried.rounding, accuracy_level=level)(graph)
        PadAttention()(graph)
        products = [node for node in graph.graph if node.op_type == "MatMulNBits"]
        assert len(products) == 2 * 4 + 1
        assert {node.attributes["bits"].value for node in products} == {
            4 if kind == Kind.Q4_0 else 8
        }
        assert carried.rounded() == {}
        graphs.save(graph, tmp_path / f"level{level}")
        found = logits(tmp_path / f"level{level}")
        assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


def test_export_tells_what_became_of_the_blocks(tiny_source: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_source, path, lambda name: Kind.Q8_0 if "ffn_up" in name else Kind.Q4_1)
    notes: list[str] = []
    bundle = tmp_path / "b.bundle"
    target = export_bundle(path, bundle, precision="gguf", note=notes.append).target
    assert target.precision == "gguf"
    assert target.rounded_again == {"Q4_1": 3}  # gate beside up, twice, and the table
    assert target.min_width == 1
    assert target.quality is not None
    assert target.quality.mean_kl < 0.05
    assert "kept for 11 of type Q4_1, 2 of type Q8_0; rounded again" in notes[-1]
    assert "3 of type Q4_1" in notes[-1].partition(";")[2]
    with SpeculativeDecoder.from_bundle(bundle, drafter="ngram", draft_tokens=4) as decoder:
        assert decoder.generate(PROMPT, max_tokens=8).token_ids
