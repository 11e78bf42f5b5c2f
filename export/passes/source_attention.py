"""Windows, scales and rotary tables as the source has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, constant

if TYPE_CHECKING:
    from specplug.export.attention import LayerAttention, Rotary

_COS, _SIN = 7, 8  # inputs of GroupQueryAttention


class SourceAttention(ir.passes.InPlacePass):  # type: ignore[misc]
    """Give every GroupQueryAttention the window, scale and rotary table of its layer.

    mobius-onnx 0.1.0 leaves some windows out, swaps others, forgets a scale, and computes some
    tables by another rule than the source does.

    Args:
        layers: the attention of each layer, in order.
    """

    def __init__(self, layers: Sequence[LayerAttention]) -> None:
        super().__init__()
        self._layers = layers

    def call(self, model: Any) -> Any:
        """Set what each node lacks or has wrong.

        Raises:
            ValueError: the graph has another number of attention layers.
        """
        graph = model.graph
        nodes = attention_nodes(graph)
        tables: dict[Rotary, int] = {}  # numbered in order of use: exports are reproducible
        for node, layer in zip(nodes, self._layers, strict=True):
            for stale in ("local_window_size", "rotary_embedding_dim", "do_rotary"):
                node.attributes.pop(stale, None)  # the width of the table says the second
            if layer.window is not None:
                _set(node, ir.AttrInt64("local_window_size", layer.window))
            if layer.scale is not None:
                _set(node, ir.AttrFloat32("scale", layer.scale))
            _set(node, ir.AttrInt64("do_rotary", int(layer.rotary is not None)))
            if layer.rotary is not None:
                number = tables.setdefault(layer.rotary, len(tables))
                _set_rotary(graph, node, layer.rotary, number)
            else:
                _drop(graph, node, _COS, _SIN)
        return ir.passes.PassResult(model, modified=bool(nodes))


def _set_rotary(graph: Any, node: Any, rotary: Rotary, number: int) -> None:
    _drop(graph, node, _COS, _SIN)
    for index, kind, table in ((_COS, "cos", rotary.cos), (_SIN, "sin", rotary.sin)):
        node.replace_input_with(index, constant(graph, f"rotary_{kind}_{number}", table))
    _set(node, ir.AttrInt64("rotary_interleaved", int(rotary.interleaved)))


def _set(node: Any, attribute: Any) -> None:
    node.attributes[attribute.name] = attribute


def _drop(graph: Any, node: Any, *indices: int) -> None:
    for index in indices:
        old = node.inputs[index]
        node.replace_input_with(index, None)
        if old is not None and old.is_initializer() and not old.uses():
            graph.initializers.pop(old.name, None)
