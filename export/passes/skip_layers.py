"""A graph without some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedFunctionsPass, RemoveUnusedNodesPass

from specplug.export.layers import Entry, cache_layer, layer_entries
from specplug.export.passes.editing import replace

_OUTPUTS = ("logits", "next_token")


class SkipLayers(ir.passes.InPlacePass):  # type: ignore[misc]
    """Keep some layers only: each reads what the kept one before it gives.

    Inputs and outputs of the cache are numbered anew from 0, and hidden states are not given.

    Args:
        layers: those that are kept, ascending; at least one.
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        self._layers = tuple(layers)

    def call(self, model: Any) -> Any:
        """Cut the others out; unmodified if there are none.

        Raises:
            ExportError: the graph is no chain of layers.
        """
        graph = model.graph
        entries = layer_entries(graph)
        last = len(entries) - 1
        if self._layers == tuple(range(last)):
            return ir.passes.PassResult(model, modified=False)
        ends = [0, *(layer + 1 for layer in self._layers)]
        for end, begin in zip(ends, [*self._layers, last], strict=True):
            if end != begin:
                _join(graph, entries[begin], entries[end], entries[0])
        _trim(graph, {layer: place for place, layer in enumerate(self._layers)})
        RemoveUnusedNodesPass()(model)
        RemoveUnusedFunctionsPass()(model)
        for value in [value for value in graph.inputs if not value.uses()]:
            graph.inputs.remove(value)
        return ir.passes.PassResult(model, modified=True)


def _join(graph: Any, entry: Entry, before: Entry, first: Entry) -> None:
    """Let what reads one entry's sum read that of an earlier one."""
    if not entry.normalizes:
        replace(graph, entry.stream, before.stream)
    elif before.normalizes:
        entry.take_addends(before)
    else:
        normalized = entry.normalized(graph, first, before.stream)
        ir.convenience.replace_all_uses_with(entry.stream, before.stream)
        replace(graph, entry.node.outputs[0], normalized)


def _trim(graph: Any, places: dict[int, int]) -> None:
    """Leave the inputs and outputs of these layers, each under its new number."""
    for values, always in ((graph.inputs, None), (graph.outputs, _OUTPUTS)):
        for value in list(values):
            layer = cache_layer(value.name)
            if layer is None:
                kept = always is None or value.name in always
            else:
                kept = layer in places
                kind, _, rest = value.name.partition(".")
                place = places[layer] if kept else f"skipped_{layer}"
                value.name = f"{kind}.{place}.{rest.partition('.')[2]}"
            if not kept and always is not None:
                values.remove(value)
