"""Weights and activations in 8 bits, as integer products: w8a8.

Weights have a scale per column, activations one per row, found at run time. One scale for a
whole call (DynamicQuantizeLinear) would make a token's scores depend on its neighbours, so the
row's scale is taken by hand:

    peak = max|x|;  u8 = QuantizeLinear(x / peak, 1/127, zero 128)
    y = MatMulIntegerToFloat(u8, weight, peak, column scales / 127, zero 128)

The scale of the first factor may be a tensor that broadcasts over the output: then the kernel
multiplies by it last. (As a scalar it would be folded into the column scales first, and round
otherwise; a peak of one row is [1, 1, 1], which does not count as one.) Activations are unsigned:
ONNX Runtime's signed kernel is ten times slower. A row of zeros gives 0/0, which QuantizeLinear
turns into some integer and the peak of 0 into zeros again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.blocks import Array, by_columns
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import MICROSOFT, constant, linear_layers, replace

_LEVELS = 127


class QuantizeW8A8(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace every linear layer by an integer product; layers share their input's rounding.

    Args:
        keep: layers for which it says yes stay in fp32.
    """

    def __init__(self, *, keep: Keep = keep_none) -> None:
        super().__init__()
        self._keep = keep

    def call(self, model: Any) -> Any:
        """Quantize every linear layer, the LM head too."""
        graph = model.graph
        rounded: dict[Any, tuple[Any, Any]] = {}
        step = constant(graph, "w8a8_step", np.array(1 / _LEVELS, dtype=np.float32))
        zero = constant(graph, "w8a8_zero", np.array(128, dtype=np.uint8))
        for layer in linear_layers(graph):
            if self._keep(layer):
                continue
            if layer.input not in rounded:
                rounded[layer.input] = _round_rows(graph, layer.node, layer.input, step, zero)
            integers, peak = rounded[layer.input]
            weight, scales = quantize_columns(layer.weight())
            product = ir.node(
                "MatMulIntegerToFloat",
                [
                    integers,
                    constant(graph, f"{layer.name}_w8", weight),
                    peak,
                    constant(graph, f"{layer.name}_w8_scales", scales / np.float32(_LEVELS)),
                    zero,
                ],
                domain=MICROSOFT,
            )
            graph.insert_before(layer.node, product)
            replace(graph, layer.output, product.outputs[0])
        return ir.passes.PassResult(model, modified=bool(rounded))


def _round_rows(graph: Any, before: Any, value: Any, step: Any, zero: Any) -> tuple[Any, Any]:
    """Insert the rounding of ``value`` to uint8; returns it and each row's peak."""
    axis = constant(graph, "w8a8_axis", np.array([-1], dtype=np.int64))
    absolute = ir.node("Abs", [value])
    peak = ir.node("ReduceMax", [absolute.outputs[0], axis], {"keepdims": 1})
    unit = ir.node("Div", [value, peak.outputs[0]])
    integers = ir.node("QuantizeLinear", [unit.outputs[0], step, zero])
    graph.insert_before(before, [absolute, peak, unit, integers])
    return integers.outputs[0], peak.outputs[0]


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """Round f32[K, N] to i8[K, N] and one scale a column, f32[N]; 0 where a column is all 0."""
    parts = by_columns(_quantize_columns, weight)
    integers, scales = zip(*parts, strict=True)
    return np.concatenate(integers, axis=1), np.concatenate(scales)


def _quantize_columns(weight: Array) -> tuple[Array, Array]:
    scales = (np.abs(weight).max(axis=0) / _LEVELS).astype(np.float32)
    safe = np.where(scales == 0, 1, scales)
    return np.rint(weight / safe).astype(np.int8), scales
