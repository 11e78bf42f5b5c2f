"""Scores only where they are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import constant, graph_input, linear_layers


class ScoresFrom(ir.passes.InPlacePass):  # type: ignore[misc]
    """Slice the hidden states before the LM head, from the new input ``scores_from`` i64[1] on."""

    def call(self, model: Any) -> Any:
        """Insert the slice; unmodified if no linear layer makes the logits, or it is there."""
        graph = model.graph
        heads = [layer for layer in linear_layers(graph) if layer.is_head]
        if not heads or any(value.name == "scores_from" for value in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        head = heads[0]
        start = graph_input(graph, "scores_from", ir.DataType.INT64, [1])
        end = constant(graph, "scores_end", np.array([np.iinfo(np.int64).max]))
        axis = constant(graph, "scores_axis", np.array([1], dtype=np.int64))
        scored = ir.node("Slice", [head.input, start, end, axis])
        graph.insert_before(head.node, scored)
        head.node.replace_input_with(0, scored.outputs[0])
        # What follows the product (a bias, scaling, capping) keeps its form.
        for value in (head.output, next(v for v in graph.outputs if v.name == "logits")):
            value.shape = ir.Shape(["batch", "scored_len", head.weight.shape[1]])
        return ir.passes.PassResult(model, modified=True)
