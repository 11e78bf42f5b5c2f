"""The residual stream as an output, for draft heads that read it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, is_linear
from specplug.types import HIDDEN_STATES

_SUM = 3  # output of the norms that add first


class HiddenStates(ir.passes.InPlacePass):  # type: ignore[misc]
    """Add the output ``hidden_states`` f32[B, T, n * D]: what n layers read, one after another.

    Layer j reads what transformers calls ``hidden_states[j]`` and vLLM the auxiliary hidden state
    j: the sum of the embeddings and of all layers before it. It is given for every token of a call,
    whatever scores are wanted.

    Args:
        layers: numbers of layers, from 0.
        size: D.
    """

    def __init__(self, layers: Sequence[int], size: int) -> None:
        super().__init__()
        self._layers, self._size = layers, size

    def call(self, model: Any) -> Any:
        """Add it; unmodified if it is there.

        Raises:
            ValueError: nothing that a layer reads was found.
        """
        graph = model.graph
        if any(value.name == HIDDEN_STATES for value in graph.outputs):
            return ir.passes.PassResult(model, modified=False)
        nodes = attention_nodes(graph)
        streams = [_read_by(nodes[layer]) for layer in self._layers]
        joined = ir.node("Concat", streams, {"axis": -1})
        graph.append(joined)
        output = joined.outputs[0]
        output.name, output.dtype = HIDDEN_STATES, ir.DataType.FLOAT
        output.shape = ir.Shape(["batch", "sequence_len", len(streams) * self._size])
        graph.outputs.append(output)
        return ir.passes.PassResult(model, modified=True)


def _read_by(attention: Any) -> Any:
    """What a layer reads, before its norm if it has one."""
    node = attention.inputs[0].producer()
    while node is not None and not is_linear(node):
        node = node.inputs[0].producer()
    if node is None:
        raise ValueError(f"{attention.name} has no projection of queries")
    value = node.inputs[0]
    norm = value.producer()
    if norm is None or not norm.op_type.endswith("Normalization"):
        return value
    return norm.outputs[_SUM] if norm.op_type.startswith("Skip") else norm.inputs[0]
