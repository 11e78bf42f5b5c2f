"""Lengths as numbers: the attention mask goes, its sums become inputs."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, graph_input, remove_dead

_SEQLENS_K, _TOTAL_LENGTH, _QUERY_SEQLENS = 5, 6, 16  # inputs of GroupQueryAttention


class ExplicitLengths(ir.passes.InPlacePass):  # type: ignore[misc]
    """Feed GroupQueryAttention its lengths directly.

    mobius sums an attention mask of one entry per cached token at every call. Inputs
    ``seqlens_k`` i32[B] (last valid entry of each row) and ``total_sequence_length`` i32[]
    say the same in eight bytes; ``query_seqlens`` i32[B] (tokens of each row that count) lets
    the rows of a batch differ in width.
    """

    def call(self, model: Any) -> Any:
        """Replace the mask; unmodified if the graph has none."""
        graph = model.graph
        masks = [value for value in graph.inputs if value.name == "attention_mask"]
        nodes = attention_nodes(graph)
        if not masks or not nodes:
            return ir.passes.PassResult(model, modified=False)
        seqlens_k = graph_input(graph, "seqlens_k", ir.DataType.INT32, ["batch"])
        total = graph_input(graph, "total_sequence_length", ir.DataType.INT32, [])
        queries = graph_input(graph, "query_seqlens", ir.DataType.INT32, ["batch"])
        for node in nodes:
            node.resize_inputs(_QUERY_SEQLENS + 1)
            node.replace_input_with(_QUERY_SEQLENS, queries)
            for index, value in ((_SEQLENS_K, seqlens_k), (_TOTAL_LENGTH, total)):
                old = node.inputs[index]
                node.replace_input_with(index, value)
                if old.producer() is not None:
                    remove_dead(graph, old.producer())
        if not masks[0].uses():
            graph.inputs.remove(masks[0])
        return ir.passes.PassResult(model, modified=True)
