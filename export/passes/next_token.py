"""The best token beside the logits."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class NextToken(ir.passes.InPlacePass):  # type: ignore[misc]
    """Add the output ``next_token`` i64[B, T'], the argmax of each row; ties go to the lowest id.

    On a GPU, greedy decoding then moves 8 bytes a token rather than the logits.
    """

    def call(self, model: Any) -> Any:
        """Add it; unmodified if it is there."""
        graph = model.graph
        if any(value.name == "next_token" for value in graph.outputs):
            return ir.passes.PassResult(model, modified=False)
        logits = next(value for value in graph.outputs if value.name == "logits")
        best = ir.node("ArgMax", [logits], {"axis": -1, "keepdims": 0})
        graph.append(best)
        output = best.outputs[0]
        output.name, output.dtype = "next_token", ir.DataType.INT64
        output.shape = ir.Shape(logits.shape[:2])
        graph.outputs.append(output)
        return ir.passes.PassResult(model, modified=True)
