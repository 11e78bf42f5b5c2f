"""Weights stored in 16 bits, products in fp32."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import linear_layers
from specplug.types import ExportError

HALVES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}


class HalfWeights(ir.passes.InPlacePass):  # type: ignore[misc]
    """Round weight matrices to 16 bits, and cast them back before their use.

    ONNX Runtime's CPU provider has no 16-bit matrix products on x64. It folds the casts when it
    loads the graph: the file is half as large, the products are those of fp32, memory is no less.

    Args:
        to: ``"fp16"`` or ``"bf16"``.
        keep: linear layers for which it says yes stay in fp32.
    """

    def __init__(self, to: Literal["fp16", "bf16"], *, keep: Keep = keep_none) -> None:
        super().__init__()
        self._to = to
        self._keep = keep

    def call(self, model: Any) -> Any:
        """Round every weight of two dimensions or more; vectors stay in fp32.

        Raises:
            ExportError: a weight is beyond the range of fp16.
        """
        values = matrices(model.graph, self._keep)
        for value in values:
            self._round(model.graph, value)
        return ir.passes.PassResult(model, modified=bool(values))

    def _round(self, graph: Any, value: Any) -> None:
        name = f"{value.name}_{self._to}"
        array = rounded(value, self._to)
        stored = ir.val(name, const_value=ir.tensor(array, name=name))
        graph.register_initializer(stored)
        cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT.value})
        graph.insert_before(graph[0], cast)
        ir.convenience.replace_all_uses_with(value, cast.outputs[0])
        graph.initializers.pop(value.name)


def rounded(value: Any, to: Literal["fp16", "bf16"]) -> np.ndarray[Any, Any]:
    """The values of a constant in 16 bits.

    Raises:
        ExportError: one is beyond the range of fp16.
    """
    values = value.const_value.numpy()
    with np.errstate(over="ignore"):  # found out below
        array: np.ndarray[Any, Any] = values.astype(HALVES[to].numpy())
    if not np.isfinite(array[np.isfinite(values)]).all():
        raise ExportError(
            f"{value.name} holds {np.abs(values).max():.4g}, beyond the range of {to}: "
            "use --precision bf16"
        )
    return array


def matrices(graph: Any, keep: Keep) -> list[Any]:
    """The weights that can be stored in 16 bits: of linear layers, and tables."""
    layers = [(layer.name, keep(layer)) for layer in linear_layers(graph)]
    kept = {name for name, is_kept in layers if is_kept}
    names = {name for name, _ in layers} | {
        name for name in graph.initializers if ".weight" in name
    }
    return [
        value
        for value in graph.initializers.values()
        if value.name in names - kept
        and value.const_value.dtype == ir.DataType.FLOAT
        and len(value.const_value.shape) >= 2
    ]
