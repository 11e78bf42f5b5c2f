"""Scores only where they are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import constant, graph_input, head_product

_PRODUCTS = ("MatMul", "MatMulNBits", "Gemm")


class ScoresFrom(ir.passes.InPlacePass):  # type: ignore[misc]
    """Slice the hidden states before the LM head, from the new input ``scores_from`` i64[1] on."""

    def call(self, model: Any) -> Any:
        """Insert the slice; unmodified if no product makes the logits, or it is there."""
        graph = model.graph
        head = head_product(graph)
        if (
            head is None
            or head.op_type not in _PRODUCTS
            or any(value.name == "scores_from" for value in graph.inputs)
        ):
            return ir.passes.PassResult(model, modified=False)
        start = graph_input(graph, "scores_from", ir.DataType.INT64, [1])
        end = constant(graph, "scores_end", np.array([np.iinfo(np.int64).max]))
        axis = constant(graph, "scores_axis", np.array([1], dtype=np.int64))
        scored = ir.node("Slice", [head.inputs[0], start, end, axis])
        graph.insert_before(head, scored)
        head.replace_input_with(0, scored.outputs[0])
        # What follows the product (a bias, scaling, capping) keeps its form.
        logits = next(value for value in graph.outputs if value.name == "logits")
        vocabulary = logits.shape[2] if logits.shape is not None else "vocab_size"
        for value in {head.outputs[0], logits}:
            value.shape = ir.Shape(["batch", "scored_len", vocabulary])
        return ir.passes.PassResult(model, modified=True)
