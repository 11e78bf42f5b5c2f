"""Rotation as a node of its own, where GroupQueryAttention cannot do it."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, graph_input, insert, unpack_heads

_COS, _SIN = 7, 8  # inputs of GroupQueryAttention
_MULTIPLE = 8  # of rotated pairs a head: its kernel's demand


class RotateOutside(ir.passes.InPlacePass):  # type: ignore[misc]
    """Rotate queries and keys before GroupQueryAttention if it refuses the rotary table.

    It rotates a multiple of 16 values of a head only; models that rotate, say, 20 of 80 get two
    RotaryEmbedding nodes a layer and the input ``position_ids`` i64[B, T].
    """

    def call(self, model: Any) -> Any:
        """Rewrite the attention of every such layer."""
        graph = model.graph
        nodes = [node for node in attention_nodes(graph) if _is_refused(node)]
        if nodes:
            positions = graph_input(
                graph, "position_ids", ir.DataType.INT64, ["batch", "sequence_len"]
            )
            for node in nodes:
                _rotate(graph, node, positions)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _is_refused(node: Any) -> bool:
    if not node.attributes["do_rotary"].value:
        return False
    return bool(node.inputs[_COS].const_value.shape[1] % _MULTIPLE)


def _rotate(graph: Any, node: Any, positions: Any) -> None:
    heads = [node.attributes[name].value for name in ("num_heads", "kv_num_heads")]
    if node.inputs[1] is None:
        unpack_heads(graph, node)
    cos, sin = node.inputs[_COS], node.inputs[_SIN]
    attributes = {
        "interleaved": node.attributes["rotary_interleaved"].value,
        "rotary_embedding_dim": 2 * int(cos.const_value.shape[1]),
    }
    for index, count in enumerate(heads):
        inputs = [node.inputs[index], cos, sin, positions]
        rotated = insert(graph, node, "RotaryEmbedding", inputs, num_heads=count, **attributes)
        node.replace_input_with(index, rotated)
    for index in (_COS, _SIN):
        node.replace_input_with(index, None)
    node.attributes["do_rotary"] = ir.AttrInt64("do_rotary", 0)
