"""Graph passes on tiny hand-built graphs: structure, ``modified``, and equal results."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import ExportError
from specplug.export.attention import LayerAttention, Rotary
from specplug.export.blocks import Blocks, k_quant, nearest
from specplug.export.keeping import KeepMatching
from specplug.export.passes import (
    ExplicitLengths,
    FuseSilu,
    GatherBlocks,
    HalfWeights,
    PackGateUp,
    QuantizeNBits,
    QuantizeW8A8,
    RotateOutside,
    ScoresFrom,
    SourceAttention,
)
from specplug.export.passes.quantize_w8a8 import quantize_columns
from tests_support.sketch import FLOAT, INT64, RNG, Sketch, attend, attention, ops, run


def gated_mlp() -> Any:
    """x -> silu(x @ gate) * (x @ up) @ down, with the logits read through a Transpose."""
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["batch", "sequence_len", 32])
    gate = sketch.node("MatMul", x, sketch.weight("mlp.gate_proj.weight", 32, 64))
    silu = sketch.node("Mul", gate, sketch.node("Sigmoid", gate))
    up = sketch.node("MatMul", x, sketch.weight("mlp.up_proj.weight", 32, 64))
    product = sketch.node("Mul", silu, up)
    down = sketch.node("MatMul", product, sketch.weight("mlp.down_proj.weight", 64, 32))
    table = sketch.node("Transpose", sketch.weight("embed.weight", 50, 32), perm=[1, 0])
    sketch.output(sketch.node("MatMul", down, table), "logits")
    return sketch.model()


X = RNG.normal(size=(1, 5, 32)).astype(np.float32)


def test_fuse_silu() -> None:
    model = gated_mlp()
    expected = run(model, x=X)[0]
    assert FuseSilu()(model).modified
    assert ops(model) == {"MatMul": 4, "QuickGelu": 1, "Mul": 1, "Transpose": 1}
    np.testing.assert_allclose(run(model, x=X)[0], expected, rtol=1e-4, atol=1e-4)
    assert not FuseSilu()(model).modified


def test_pack_gate_up() -> None:
    model = gated_mlp()
    expected = run(model, x=X)[0]
    assert PackGateUp()(model).modified
    assert ops(model)["MatMul"] == 3
    assert ops(model)["Split"] == 1
    assert model.graph.initializers["mlp.gate_up_proj.weight"].shape == [32, 128]
    assert "mlp.gate_proj.weight" not in model.graph.initializers
    np.testing.assert_allclose(run(model, x=X)[0], expected, rtol=1e-4, atol=1e-4)
    assert not PackGateUp()(model).modified


def test_scores_from() -> None:
    model = gated_mlp()
    expected = run(model, x=X)[0]
    assert ScoresFrom()(model).modified
    found = run(model, x=X, scores_from=np.array([3]))[0]
    assert found.shape == (1, 2, 50)
    np.testing.assert_allclose(found, expected[:, 3:], rtol=1e-4, atol=1e-4)
    assert not ScoresFrom()(model).modified


def test_scores_from_leaves_other_graphs_alone() -> None:
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["n", 4])
    sketch.output(sketch.node("Relu", x), "logits")
    assert not ScoresFrom()(sketch.model()).modified


@pytest.mark.parametrize(("bits", "tolerance"), [(4, 0.3), (8, 0.02)])
def test_quantize_nbits(bits: int, tolerance: float) -> None:
    model = gated_mlp()
    expected = run(model, x=X)[0]
    assert QuantizeNBits(bits=bits, head_bits=8)(model).modified
    assert ops(model)["MatMulNBits"] == 4
    assert ops(model)["MatMul"] == ops(model)["Transpose"] == 0
    heads = [n for n in model.graph if n.outputs[0].name == "logits"]
    assert heads[0].attributes["bits"].value == 8
    assert not {"embed.weight", "mlp.up_proj.weight"} & set(model.graph.initializers)
    found = run(model, x=X)[0]
    assert np.abs(found - expected).mean() < tolerance * np.abs(expected).mean()
    assert not QuantizeNBits()(model).modified


def test_quantize_nbits_leaves_odd_inputs_alone() -> None:
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["n", 40])
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", 40, 8)), "y")
    assert not QuantizeNBits()(sketch.model()).modified


def test_quantize_w8a8_is_close_and_keeps_rows_apart() -> None:
    model = gated_mlp()
    expected = run(model, x=X)[0]
    assert QuantizeW8A8()(model).modified
    assert ops(model)["RowQuantizedProduct"] == 4
    found = run(model, x=X)[0]
    assert np.abs(found - expected).mean() < 0.02 * np.abs(expected).mean()
    loud = X.copy()
    loud[0, 1] *= 1000  # a neighbour's size must not matter
    np.testing.assert_array_equal(run(model, x=loud)[0][0, [0, 2, 3, 4]], found[0, [0, 2, 3, 4]])
    assert not QuantizeW8A8()(model).modified


def test_w8a8_of_a_zero_row_is_zero() -> None:
    model = gated_mlp()
    QuantizeW8A8()(model)
    quiet = X.copy()
    quiet[0, 2] = 0
    found = run(model, x=quiet)[0]
    assert np.isfinite(found).all()
    assert not found[0, 2].any()


@given(st.integers(0, 1000), st.sampled_from([4, 8]))
@settings(max_examples=40, deadline=None)
def test_block_rounding_is_within_half_a_step(seed: int, bits: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(64, 3)).astype(np.float32)
    blocks = nearest(weight, bits)
    error = np.abs(blocks.values() - weight.T).reshape(3, 2, 32)
    # In 4 bits the far end of the other sign is a step short of the range.
    steps = np.abs(blocks.scales)[..., None]
    assert (error <= steps * (1.001 if bits == 4 else 0.501)).all()
    assert (error <= steps * 0.501).mean() > 0.9


@given(st.integers(0, 1000), st.floats(-2, 2), st.sampled_from([0.0, 1e-3, 1.0]))
@settings(max_examples=40, deadline=None)
def test_k_quant_is_never_worse_than_nearest(seed: int, shift: float, spread: float) -> None:
    """Also on blocks of one sign or one value, which the library's search spoils."""
    noise = np.random.default_rng(seed).normal(size=(64, 40))
    weight = (noise * spread + shift).astype(np.float32)

    def error(blocks: Blocks) -> np.ndarray:
        return ((blocks.values() - weight.T) ** 2).reshape(40, 2, 32).sum(axis=-1)

    found, plain = error(k_quant(weight, 4)), error(nearest(weight, 4))
    assert (found <= plain).all()
    if spread == 1.0 and abs(shift) < 1:
        assert found.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("blocks_a_row", [1, 2, 3])
def test_the_kernel_reads_blocks_as_we_write_them(bits: int, blocks_a_row: int) -> None:
    """Zero points, nibbles, and their padding, against the product with the blocks' values."""
    inner = 32 * blocks_a_row
    weight = RNG.normal(size=(inner, 8)).astype(np.float32) + 0.5
    blocks = k_quant(weight, bits)
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["n", inner])
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", inner, 8)), "y")
    model = sketch.model()
    assert QuantizeNBits(bits=bits, rounding=lambda *_: blocks, accuracy_level=0)(model).modified
    found = run(model, x=np.eye(inner, dtype=np.float32))[0]
    np.testing.assert_allclose(found, blocks.values().T, rtol=1e-6, atol=1e-6)


def embedded(tied: bool) -> Any:
    """Tokens through a table, and logits from it again, or from a head of its own."""
    sketch = Sketch()
    tokens = sketch.input("input_ids", INT64, ["batch", "sequence_len"])
    table = sketch.weight("embed.weight", 50, 64)
    rows = sketch.node("Gather", table, tokens)
    head = table if tied else sketch.weight("head.weight", 50, 64)
    sketch.output(
        sketch.node("MatMul", rows, sketch.node("Transpose", head, perm=[1, 0])), "logits"
    )
    sketch.output(sketch.node("Identity", rows), "rows")
    return sketch.model()


@pytest.mark.parametrize(("bits", "rounding"), [(8, nearest), (4, nearest), (4, k_quant)])
def test_tokens_are_looked_up_in_the_heads_blocks(bits: int, rounding: Any) -> None:
    model = embedded(tied=True)
    table = model.graph.initializers["embed.weight"].const_value.numpy()
    QuantizeNBits(head_bits=bits, rounding=rounding)(model)
    assert GatherBlocks()(model).modified
    assert ops(model) == {"Reshape": 1, "GatherBlockQuantized": 1, "MatMulNBits": 1, "Identity": 1}
    assert "embed.weight" not in model.graph.initializers
    tokens = np.array([[3, 49, 0, 3]])
    np.testing.assert_array_equal(
        run(model, input_ids=tokens)[1], rounding(table.T, bits).values()[tokens]
    )
    assert not GatherBlocks()(model).modified


@pytest.mark.parametrize("layers", [QuantizeNBits(), QuantizeW8A8()])
def test_other_tables_get_blocks_of_their_own(layers: Any) -> None:
    model = embedded(tied=isinstance(layers, QuantizeW8A8))
    table = model.graph.initializers["embed.weight"].const_value.numpy()
    layers(model)
    assert GatherBlocks()(model).modified
    assert "embed.weight" not in model.graph.initializers
    tokens = np.array([[3, 49, 0, 3]])
    np.testing.assert_array_equal(
        run(model, input_ids=tokens)[1], nearest(table.T, 8).values()[tokens]
    )


def test_tables_that_stay() -> None:
    head_in_fp32 = embedded(tied=True)
    assert not GatherBlocks()(head_in_fp32).modified
    kept = embedded(tied=False)
    assert not GatherBlocks(keep=lambda layer: layer.name == "embed.weight")(kept).modified
    unfit = embedded(tied=False)
    assert not GatherBlocks(rounding=lambda weight, bits: None)(unfit).modified


def test_half_weights() -> None:
    model = gated_mlp()
    up = model.graph.initializers["mlp.up_proj.weight"].const_value.numpy()
    head = model.graph.initializers["embed.weight"].const_value.numpy()
    assert HalfWeights("fp16", keep=lambda layer: layer.is_head)(model).modified
    stored = model.graph.initializers["mlp.up_proj.weight_fp16"].const_value.numpy()
    np.testing.assert_array_equal(stored, up.astype(np.float16))
    np.testing.assert_array_equal(model.graph.initializers["embed.weight"].const_value, head)
    assert ops(model)["Cast"] == 3
    exact = gated_mlp()
    for name in ("gate_proj", "up_proj", "down_proj"):
        ours = model.graph.initializers[f"mlp.{name}.weight_fp16"].const_value.numpy()
        value = exact.graph.initializers[f"mlp.{name}.weight"]
        value.const_value = ir.tensor(ours.astype(np.float32), name=value.name)
    exact.graph.initializers["embed.weight"].const_value = ir.tensor(head, name="embed.weight")
    np.testing.assert_array_equal(run(model, x=X)[0], run(exact, x=X)[0])
    assert not HalfWeights("fp16", keep=lambda layer: layer.is_head)(model).modified


def test_half_weights_refuse_what_fp16_does_not_hold() -> None:
    model = gated_mlp()
    value = model.graph.initializers["mlp.up_proj.weight"]
    big = value.const_value.numpy() * 1e5
    value.const_value = ir.tensor(big, name=value.name)
    with pytest.raises(ExportError, match=r"up_proj.weight holds .*e\+05, beyond .*bf16"):
        HalfWeights("fp16")(model)
    assert HalfWeights("bf16")(gated_mlp()).modified


def test_kept_layers_stay() -> None:
    for quantize in (QuantizeNBits, QuantizeW8A8):
        model = gated_mlp()
        keep = KeepMatching(r"down_proj|lm_head")
        assert quantize(keep=keep)(model).modified
        keep.check_matched()
        assert ops(model)["MatMul"] == 2
        assert {"mlp.down_proj.weight", "embed.weight"} <= set(model.graph.initializers)


def test_packed_layers_are_kept_by_any_of_their_names() -> None:
    model = gated_mlp()
    PackGateUp()(model)
    QuantizeNBits(keep=KeepMatching(r"mlp\.up_proj"))(model)
    assert "mlp.gate_up_proj.weight" in model.graph.initializers


def test_a_name_that_matches_nothing_is_told() -> None:
    keep = KeepMatching("attention")
    QuantizeNBits(keep=keep)(gated_mlp())
    with pytest.raises(ExportError, match=r"'attention' matches no layer: .*mlp.gate_proj.weight"):
        keep.check_matched()
    with pytest.raises(ExportError, match=r"'\(' is no regular expression"):
        KeepMatching("(")


@given(st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_column_rounding_is_within_half_a_step(seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(16, 5)).astype(np.float32)
    weight[:, 2] = 0
    integers, scales = quantize_columns(weight)
    assert (np.abs(integers * scales - weight) <= scales * 0.501).all()
    assert scales[2] == 0
    assert not integers[:, 2].any()


def rotary(pairs: int) -> Rotary:
    angles = np.outer(np.arange(64), 1 / (1 + np.arange(pairs))).astype(np.float32)
    return Rotary(np.cos(angles), np.sin(angles), interleaved=False)


def rotated(model: Any, layer: LayerAttention) -> Any:
    ExplicitLengths()(model)
    assert SourceAttention([layer])(model).modified
    return next(node for node in model.graph if node.op_type == "GroupQueryAttention")


def test_source_attention_sets_window_scale_and_table() -> None:
    model = attention(size=16)
    node = rotated(model, LayerAttention(window=4, scale=0.5, rotary=rotary(8)))
    assert node.attributes["local_window_size"].value == 4
    assert node.attributes["scale"].value == 0.5
    assert node.attributes["do_rotary"].value == 1
    assert node.inputs[7].const_value.shape == (64, 8)
    assert not RotateOutside()(model).modified
    # Another source: what was set goes again, its tables too.
    node = rotated(model, LayerAttention(window=None, scale=0.5, rotary=None))
    assert "local_window_size" not in node.attributes
    assert node.attributes["do_rotary"].value == 0
    assert not [name for name in model.graph.initializers if name.startswith("rotary")]


def test_source_attention_wants_one_entry_a_layer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        SourceAttention([])(attention())


def test_a_window_hides_what_is_behind_it() -> None:
    model = attention()
    whole = attend(model, 3, 5)
    rotated(model, LayerAttention(window=2, scale=None, rotary=None))
    assert np.abs(attend(model, 3, 5) - whole).max() > 1e-3


def test_rotation_outside_is_the_rotation_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that the attention takes itself, and the same one rotated by nodes before it."""
    layer = LayerAttention(window=None, scale=None, rotary=rotary(8))
    inside, outside = attention(size=16), attention(size=16)
    rotated(inside, layer)
    rotated(outside, layer)
    monkeypatch.setattr("specplug.export.passes.rotate_outside._MULTIPLE", 3)
    assert RotateOutside()(outside).modified
    assert ops(outside)["RotaryEmbedding"] == 2
    assert ops(outside)["Split"] == 1
    assert not RotateOutside()(outside).modified
    positions = np.arange(5, 8)[None]
    found = attend(outside, 3, 5, position_ids=positions)
    np.testing.assert_allclose(found, attend(inside, 3, 5), atol=1e-6)
    assert np.abs(found - attend(outside, 3, 5, position_ids=positions * 2)).max() > 1e-3
