"""A graph in which each call says which layers run."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.layers import layer_entries
from specplug.export.passes.editing import constant, graph_input

KEPT_LAYERS = "kept_layers"


class GateLayers(ir.passes.InPlacePass):  # type: ignore[misc]
    """Add the input ``kept_layers`` bool[layers]: what a layer that is not kept gives is what it
    reads.

    So all sets of layers can be compared over one loaded graph. It computes the layers all the
    same, writes their cache entries, and takes as long as with all of them.
    """

    def call(self, model: Any) -> Any:
        """Add it; unmodified if it is there.

        Raises:
            ExportError: the graph is no chain of layers.
        """
        graph = model.graph
        if any(value.name == KEPT_LAYERS for value in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        entries = layer_entries(graph)
        gates = graph_input(graph, KEPT_LAYERS, ir.DataType.BOOL, [len(entries) - 1])
        stream = entries[0].stream
        for layer, entry in enumerate(entries[1:]):
            place = constant(graph, f"gate_{layer}", np.array(layer, dtype=np.int64))
            nodes = [ir.node("Gather", [gates, place], {"axis": 0})]
            gate, whole = nodes[0].outputs[0], entry.stream
            if entry.normalizes:
                whole, *more = entry.addends
                for addend in more:
                    nodes.append(ir.node("Add", [whole, addend]))
                    whole = nodes[-1].outputs[0]
            nodes.append(ir.node("Where", [gate, whole, stream]))
            stream = nodes[-1].outputs[0]
            if entry.normalizes:
                graph.insert_before(entry.node, nodes)
                normalized = entry.normalized(graph, entries[0], stream)
                ir.convenience.replace_all_uses_with(entry.node.outputs[0], normalized)
                ir.convenience.replace_all_uses_with(entry.stream, stream)
                graph.remove(entry.node, safe=True)
            else:
                ir.convenience.replace_all_uses_with(whole, stream)
                nodes[-1].replace_input_with(1, whole)
                graph.insert_after(entry.node, nodes)
        return ir.passes.PassResult(model, modified=True)
