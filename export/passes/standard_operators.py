"""ONNX Runtime's fused operators as those of ONNX itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import constant, insert, replace

_NORMS = {
    "SkipSimplifiedLayerNormalization": ("RMSNormalization", 3),
    "SkipLayerNormalization": ("LayerNormalization", 4),
}
"""What is left of the operator without the sum before it, and where its bias input is."""


class StandardOperators(ir.passes.InPlacePass):  # type: ignore[misc]
    """Take apart QuickGelu, SkipLayerNormalization and SkipSimplifiedLayerNormalization."""

    def call(self, model: Any) -> Any:
        """Replace every such node."""
        graph = model.graph
        modified = False
        for node in list(graph):
            if node.op_type == "QuickGelu":
                _split_gelu(graph, node)
            elif node.op_type in _NORMS:
                _split_norm(graph, node)
            else:
                continue
            modified = True
        for identifier in [key for key in model.functions if key[0] == "com.microsoft"]:
            del model.functions[identifier]  # what an engine without the operator would run
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def _split_gelu(graph: Any, node: Any) -> None:
    """X * sigmoid(alpha * x)."""
    value, alpha = node.inputs[0], node.attributes["alpha"].value
    scaled = value
    if alpha != 1:
        factor = constant(graph, f"alpha_{alpha:.6g}", np.array(alpha, dtype=np.float32))
        scaled = insert(graph, node, "Mul", [value, factor])
    gate = insert(graph, node, "Sigmoid", [scaled])
    replace(graph, node.outputs[0], insert(graph, node, "Mul", [value, gate]))


def _split_norm(graph: Any, node: Any) -> None:
    norm, bias_at = _NORMS[node.op_type]
    inputs = [*node.inputs, *[None] * (bias_at + 1 - len(node.inputs))]
    total = insert(graph, node, "Add", inputs[:2])
    if inputs[bias_at] is not None:
        total = insert(graph, node, "Add", [total, inputs[bias_at]])
    attributes = {"axis": -1, "epsilon": node.attributes["epsilon"].value}
    weights = [value for value in inputs[2:bias_at] if value is not None]
    normed = insert(graph, node, norm, [total, *weights], **attributes)
    if len(node.outputs) > 3:
        ir.convenience.replace_all_uses_with(node.outputs[3], total)
    replace(graph, node.outputs[0], normed)
