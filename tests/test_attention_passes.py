"""Passes over attention: its lengths, its padding, its trees."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from specplug.export.passes import ExplicitLengths, PadAttention, TreeAttention
from tests_support.sketch import attend, attention, ops


def test_explicit_lengths() -> None:
    model = attention()
    expected = attend(model, 3, 5)
    assert ExplicitLengths()(model).modified
    assert ops(model) == {"GroupQueryAttention": 1, "Relu": 1}
    assert "attention_mask" not in {value.name for value in model.graph.inputs}
    np.testing.assert_array_equal(attend(model, 3, 5), expected)
    assert not ExplicitLengths()(model).modified


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_pad_attention(width: int) -> None:
    model = attention()
    ExplicitLengths()(model)
    expected = attend(model, width, 5)
    assert PadAttention()(model).modified
    assert ops(model)["Gather"] == ops(model)["Slice"] == 1
    two, one = np.array(2, np.int64), np.array(1, np.int64)
    padded = attend(model, width, 5, attention_rows=two)
    assert padded.shape == expected.shape
    np.testing.assert_allclose(padded, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(attend(model, width, 5, attention_rows=one), expected)
    # One row, padded, is bit for bit the first of many.
    np.testing.assert_array_equal(padded[:, 0], attend(model, 9, 5, attention_rows=two)[:, 0])
    assert not PadAttention()(model).modified


def with_trees() -> Any:
    """Attention that rotates, with lengths and trees as inputs."""
    model = attention(size=16)
    ExplicitLengths()(model)
    angles = np.outer(np.arange(64), 1 / (1 + np.arange(8))).astype(np.float32)
    (node,) = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    for index, (name, table) in enumerate((("cos", np.cos(angles)), ("sin", np.sin(angles))), 7):
        value = ir.val(name, const_value=ir.tensor(table[:, :8], name=name))
        model.graph.register_initializer(value)
        node.resize_inputs(max(len(node.inputs), index + 1))
        node.replace_input_with(index, value)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 1)
    return model


def inputs_of(parents: list[int], past: int, **more: np.ndarray) -> dict[str, np.ndarray]:
    """Positions and bias of a tree."""
    width = len(parents)
    depth, bias = [0] * width, np.full((1, 1, width, past + width), -np.inf, np.float32)
    bias[..., :past] = 0
    for node, parent in enumerate(parents):
        depth[node] = depth[parent] + 1 if parent >= 0 else 0
        if parent >= 0:
            bias[0, 0, node, past:] = bias[0, 0, parent, past:]
        bias[0, 0, node, past + node] = 0
    return {"attention_bias": bias, "position_ids": np.array([[past + d for d in depth]]), **more}


def test_a_chain_is_what_it_was_bit_for_bit() -> None:
    for pad in (False, True):
        model, plain = with_trees(), with_trees()
        assert TreeAttention()(model).modified
        assert {"attention_bias", "position_ids"} <= {value.name for value in model.graph.inputs}
        assert not TreeAttention()(model).modified
        more = {}
        if pad:
            PadAttention()(model)
            PadAttention()(plain)
            more = {"attention_rows": np.array(2, np.int64)}
        for width in (2, 3, 9):
            given = inputs_of([*range(-1, width - 1)], 5, **more)
            given["attention_bias"][...] = 0
            np.testing.assert_array_equal(
                attend(model, width, 5, **given), attend(plain, width, 5, **more)
            )


def test_a_trees_nodes_see_their_ancestors_alone() -> None:
    model, plain = with_trees(), with_trees()
    TreeAttention()(model)
    parents = [-1, 0, 0, 1, 2, 3]
    tree = attend(model, 6, 5, **inputs_of(parents, 5))
    for leaf in (4, 5):
        path = [leaf]
        while parents[path[0]] >= 0:
            path.insert(0, parents[path[0]])
        np.testing.assert_allclose(
            tree[:, path], attend(plain, len(path), 5, chosen=path), rtol=1e-5, atol=1e-6
        )


def test_windowed_attention_takes_no_trees() -> None:
    model = with_trees()
    (node,) = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    node.attributes["local_window_size"] = ir.AttrInt64("local_window_size", 4)
    assert not TreeAttention()(model).modified
    assert "attention_bias" not in {value.name for value in model.graph.inputs}
