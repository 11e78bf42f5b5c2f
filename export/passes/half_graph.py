"""Everything in 16 bits: weights, activations, caches."""

from __future__ import annotations

from typing import Any, Literal

import ml_dtypes
import numpy as np
import onnx_ir as ir

from specplug.export.passes.half_weights import HALVES, rounded
from specplug.types import HIDDEN_STATES


class HalfGraph(ir.passes.InPlacePass):  # type: ignore[misc]
    """Compute a graph of the ``standard`` dialect in 16 bits.

    Masks, hidden states and logits stay fp32 at the graph's edge, and norms inside their operators.

    Args:
        to: ``"fp16"`` or ``"bf16"``.
    """

    def __init__(self, to: Literal["fp16", "bf16"]) -> None:
        super().__init__()
        self._dtype = HALVES[to]
        self._to = to

    def call(self, model: Any) -> Any:
        """Convert constants, inputs and casts.

        Raises:
            ExportError: a weight is beyond the range of fp16.
        """
        graph = model.graph
        given = [
            value
            for value in graph.inputs
            if value.dtype == ir.DataType.FLOAT and not value.name.startswith("past_key_values.")
        ]
        wide = [value for value in graph.outputs if value.name in ("logits", HIDDEN_STATES)]
        for value in graph.initializers.values():
            if value.dtype == ir.DataType.FLOAT:
                if value.const_value.size == 1:  # a bound such as 1e30, not a weight
                    _saturate(value, self._dtype)
                array = rounded(value, self._to)
                value.const_value = ir.tensor(array, dtype=self._dtype, name=value.name)
        for value in _values(graph):
            if value.dtype == ir.DataType.FLOAT and value not in given:
                value.dtype = self._dtype
        for node in list(graph):
            if node.op_type == "Cast" and node.attributes["to"].value == ir.DataType.FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", self._dtype)
            elif node.op_type == "Constant" and "value" in node.attributes:
                _convert_constant(node, self._dtype)
        for value in given:
            cast = ir.node("Cast", [value], {"to": self._dtype})
            ir.convenience.replace_all_uses_with(value, cast.outputs[0])
            cast.replace_input_with(0, value)
            graph.insert_before(graph[0], cast)
        for value in wide:
            self._widen(graph, value)
        return ir.passes.PassResult(model, modified=True)

    def _widen(self, graph: Any, output: Any) -> None:
        """Give an output in fp32."""
        name, output.name = output.name, f"{output.name}_{self._to}"
        cast = ir.node("Cast", [output], {"to": ir.DataType.FLOAT})
        graph.append(cast)
        wide = cast.outputs[0]
        wide.name, wide.shape, wide.dtype = name, output.shape, ir.DataType.FLOAT
        graph.outputs[list(graph.outputs).index(output)] = wide


def _saturate(value: Any, dtype: Any) -> None:
    most = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    array = np.clip(value.const_value.numpy(), -most, most)
    value.const_value = ir.tensor(array, name=value.name)


def _values(graph: Any) -> list[Any]:
    made = [value for node in graph for value in node.outputs]
    return [*graph.inputs, *graph.initializers.values(), *made]


def _convert_constant(node: Any, dtype: Any) -> None:
    value = node.attributes["value"].value
    if value.dtype == ir.DataType.FLOAT:
        array = value.numpy().astype(dtype.numpy())
        node.attributes["value"] = ir.AttrTensor("value", ir.tensor(array, dtype=dtype))
