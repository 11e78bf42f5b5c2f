"""One product for the two halves of a gated MLP."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import Linear, constant, lazy_constant, linear_layers, replace


class PackGateUp(ir.passes.InPlacePass):  # type: ignore[misc]
    """Join ``gate_proj`` and ``up_proj``, which read the same input, and split their output."""

    def call(self, model: Any) -> Any:
        """Pack every pair found."""
        graph = model.graph
        gates: dict[Any, Linear] = {}
        ups: dict[Any, Linear] = {}
        for layer in linear_layers(graph):
            if "gate_proj" in layer.name:
                gates[layer.input] = layer
            elif "up_proj" in layer.name:
                ups[layer.input] = layer
        pairs = [(gates[x], ups[x]) for x in gates if x in ups]
        for gate, up in pairs:
            _pack(graph, gate, up)
        return ir.passes.PassResult(model, modified=bool(pairs))


def _pack(graph: Any, gate: Linear, up: Linear) -> None:
    widths = np.array([gate.shape[1], up.shape[1]], dtype=np.int64)
    weight = lazy_constant(
        graph,
        gate.name.replace("gate_proj", "gate_up_proj"),
        (gate.shape[0], int(widths.sum())),
        lambda: np.concatenate([gate.weight(), up.weight()], axis=1),
    )
    product = ir.node("MatMul", [gate.input, weight])
    sizes = constant(graph, f"split_{widths[0]}_{widths[1]}", widths)
    split = ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=2)
    graph.insert_before(gate.node, [product, split])
    replace(graph, gate.output, split.outputs[0])
    replace(graph, up.output, split.outputs[1])
