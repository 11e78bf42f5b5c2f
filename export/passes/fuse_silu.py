"""One node for x * sigmoid(x)."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from specplug.export.passes.editing import MICROSOFT, replace


class FuseSilu(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace Sigmoid and Mul by QuickGelu with alpha 1, which is SiLU."""

    def call(self, model: Any) -> Any:
        """Fuse every pair found."""
        graph = model.graph
        modified = False
        for node in list(graph):
            if node.op_type != "Sigmoid":
                continue
            gate, sigmoid = node.inputs[0], node.outputs[0]
            users = [use.node for use in sigmoid.uses()]
            if len(users) != 1 or users[0].op_type != "Mul" or gate not in users[0].inputs:
                continue
            fused = ir.node("QuickGelu", [gate], {"alpha": 1.0}, domain=MICROSOFT)
            graph.insert_before(users[0], fused)
            replace(graph, users[0].outputs[0], fused.outputs[0])
            modified = True
        return ir.passes.PassResult(model, modified=modified)
