"""Attention in the operators of ONNX itself, over a cache of fixed capacity."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import (
    attention_nodes,
    constant,
    graph_input,
    insert,
    replace,
    unpack_heads,
)

_PAST, _COS, _SIN = (3, 4), 7, 8  # inputs of GroupQueryAttention
_UNKNOWN = (10, 11, 12, 13, 14, 15)  # biases, sinks, quantized caches, norms: mobius makes none
_POSITIONS, _ENTRIES, _MASK = "position_ids", "write_indices", "attention_mask"


class StandardAttention(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace GroupQueryAttention by RotaryEmbedding, TensorScatter and Attention.

    The lengths that it takes go; these inputs come: ``position_ids`` i64[B, T]; ``write_indices``
    i64[B], the cache entry that a row's first token is written to; and masks f32[B, 1, T,
    capacity] that are added to the products of queries and keys: ``attention_mask``, and
    ``attention_mask_W`` for the layers that see W tokens. Masks rather than lengths, because
    TensorRT's parser ignores lengths without a word; and they carry ragged batches and trees.
    Caches keep their names and shape, past and present now of one capacity.
    """

    def call(self, model: Any) -> Any:
        """Rewrite every layer.

        Raises:
            ValueError: an input of GroupQueryAttention that this pass does not know.
        """
        graph = model.graph
        nodes = attention_nodes(graph)
        for node in nodes:
            _rewrite(graph, node)
        for name in ("seqlens_k", "total_sequence_length", "query_seqlens"):
            for value in [value for value in graph.inputs if value.name == name]:
                graph.inputs.remove(value)
        for value in (*graph.inputs, *graph.outputs):
            if value.name.endswith((".key", ".value")):
                batch, heads, _, size = value.shape
                value.shape = ir.Shape([batch, heads, "capacity", size])
        return ir.passes.PassResult(model, modified=bool(nodes))


def _rewrite(graph: Any, node: Any) -> None:
    known = [None if i in _UNKNOWN else v for i, v in enumerate(node.inputs)]
    if known != list(node.inputs):
        raise ValueError(f"{node.name} has inputs that the standard dialect has no place for")
    if node.inputs[1] is None:
        unpack_heads(graph, node)
    heads = [node.attributes[name].value for name in ("num_heads", "kv_num_heads", "kv_num_heads")]
    queries, *pair = (
        _by_head(graph, node, value, count)
        for value, count in zip(node.inputs[:3], heads, strict=True)
    )
    if node.attributes["do_rotary"].value:
        queries, pair[0] = _rotated(graph, node, queries), _rotated(graph, node, pair[0])
    entries = _input(graph, _ENTRIES, ir.DataType.INT64, ["batch"])
    present = [
        insert(graph, node, "TensorScatter", [node.inputs[index], update, entries], axis=2)
        for index, update in zip(_PAST, pair, strict=True)
    ]
    window = node.attributes.get("local_window_size")
    mask = _input(
        graph,
        _MASK if window is None else f"{_MASK}_{window.value}",
        ir.DataType.FLOAT,
        ["batch", 1, "sequence_len", "capacity"],
    )
    scale, cap = (
        node.attributes[name].value if name in node.attributes else 0.0
        for name in ("scale", "softcap")
    )
    scale = scale or _head_size(node) ** -0.5
    if cap:
        attended = _capped(graph, node, [queries, *present, mask], heads[:2], scale, cap)
    else:
        attended = insert(graph, node, "Attention", [queries, *present, mask], scale=scale)
    joined = insert(graph, node, "Transpose", [attended], perm=[0, 2, 1, 3])
    flat = insert(graph, node, "Reshape", [joined, _shape(graph, "heads_joined", [0, 0, -1])])
    for old, new in zip(node.outputs, (flat, *present), strict=True):
        replace(graph, old, new)


def _capped(
    graph: Any, node: Any, inputs: list[Any], heads: list[int], scale: float, cap: float
) -> Any:
    """Attention whose products are capped to (-cap, cap), which TensorRT's Attention cannot do.

    Heads that share keys lie beside one another, [B, heads of keys, sharing, T, size].
    """
    queries, keys, values, mask = inputs
    shared, apart = heads[1], heads[0] // heads[1]

    def make(operator: str, *made_of: Any, **attributes: Any) -> Any:
        return insert(graph, node, operator, made_of, **attributes)

    def number(name: str, value: float) -> Any:
        return constant(graph, f"{name}_{value:.6g}", np.array(value, dtype=np.float32))

    one, two = (_shape(graph, f"axis_{axis}", [axis]) for axis in (1, 2))
    grouped = make(
        "Reshape", queries, _shape(graph, "grouped", [0, shared, apart, -1, _head_size(node)])
    )
    turned = make("Transpose", make("Unsqueeze", keys, two), perm=[0, 1, 2, 4, 3])
    products = make("Mul", make("MatMul", grouped, turned), number("scale", scale / cap))
    capped = make("Mul", make("Tanh", products), number("cap", cap))
    weights = make("Softmax", make("Add", capped, make("Unsqueeze", mask, one)), axis=-1)
    sums = make("MatMul", weights, make("Unsqueeze", values, two))
    return make("Reshape", sums, _shape(graph, "ungrouped", [0, heads[0], -1, _head_size(node)]))


def _head_size(node: Any) -> int:
    return int(node.inputs[_PAST[0]].shape[3])


def _by_head(graph: Any, node: Any, value: Any, heads: int) -> Any:
    """f32[B, T, heads * size] as f32[B, heads, T, size]."""
    shape = _shape(graph, f"of_{heads}_heads", [0, 0, heads, -1])
    split = insert(graph, node, "Reshape", [value, shape])
    return insert(graph, node, "Transpose", [split], perm=[0, 2, 1, 3])


def _rotated(graph: Any, node: Any, value: Any) -> Any:
    cos, sin = node.inputs[_COS], node.inputs[_SIN]
    positions = _input(graph, _POSITIONS, ir.DataType.INT64, ["batch", "sequence_len"])
    return insert(
        graph,
        node,
        "RotaryEmbedding",
        [value, cos, sin, positions],
        interleaved=node.attributes["rotary_interleaved"].value,
        rotary_embedding_dim=2 * int(cos.const_value.shape[1]),
    )


def _shape(graph: Any, name: str, dimensions: list[int]) -> Any:
    return constant(graph, name, np.array(dimensions, dtype=np.int64))


def _input(graph: Any, name: str, dtype: Any, shape: list[int | str]) -> Any:
    found = next((value for value in graph.inputs if value.name == name), None)
    return found if found is not None else graph_input(graph, name, dtype, shape)
