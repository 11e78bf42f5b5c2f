"""Logits in fp32, whatever a graph computes in."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class SingleLogits(ir.passes.InPlacePass):  # type: ignore[misc]
    """Cast logits to fp32: the engines read no other type."""

    def call(self, model: Any) -> Any:
        """Append the cast; unmodified if they are fp32."""
        graph = model.graph
        place = next(i for i, value in enumerate(graph.outputs) if value.name == "logits")
        logits = graph.outputs[place]
        if logits.dtype == ir.DataType.FLOAT:
            return ir.passes.PassResult(model, modified=False)
        cast = ir.node("Cast", [logits], {"to": ir.DataType.FLOAT.value})
        logits.name = "logits_as_computed"
        single = cast.outputs[0]
        single.name, single.dtype, single.shape = "logits", ir.DataType.FLOAT, logits.shape
        graph.append(cast)
        graph.outputs[place] = single
        return ir.passes.PassResult(model, modified=True)
