"""Who sees whom as an input, so that a call can be a tree of tokens."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, graph_input

POSITION_IDS, ATTENTION_BIAS = 9, 10  # inputs of GroupQueryAttention


class TreeAttention(ir.passes.InPlacePass):  # type: ignore[misc]
    """Give GroupQueryAttention the inputs ``attention_bias`` and ``position_ids``.

    The first, f32[1 or B, 1, T, capacity], is added to the products of queries and keys: zeros for
    a chain, whose rows stay bit for bit what they are without; for a tree -inf hides what is not an
    ancestor. ``total_sequence_length`` is then the capacity, so that the input's shape lasts.

    Windows are counted in cache entries, which in a tree are not positions: graphs with windowed
    layers are left alone.
    """

    def call(self, model: Any) -> Any:
        """Add the inputs; unmodified if a layer has a window, or they are there."""
        graph = model.graph
        nodes = attention_nodes(graph)
        windowed = any("local_window_size" in node.attributes for node in nodes)
        inputs = {value.name: value for value in graph.inputs}
        if not nodes or windowed or "attention_bias" in inputs:
            return ir.passes.PassResult(model, modified=False)
        bias = graph_input(
            graph,
            "attention_bias",
            ir.DataType.FLOAT,
            ["bias_batch", 1, "sequence_len", "total_len"],
        )
        positions = inputs.get("position_ids")
        for node in nodes:
            node.resize_inputs(max(len(node.inputs), ATTENTION_BIAS + 1))
            node.replace_input_with(ATTENTION_BIAS, bias)
            rotates = node.attributes.get("do_rotary")
            if rotates is not None and rotates.value:
                if positions is None:
                    positions = graph_input(
                        graph, "position_ids", ir.DataType.INT64, ["batch", "sequence_len"]
                    )
                node.replace_input_with(POSITION_IDS, positions)
        return ir.passes.PassResult(model, modified=True)
