"""Weights and activations in 8 bits, as integer products: w8a8.

Weights have a scale per column, activations one per row, found at run time. One scale for a
whole call (DynamicQuantizeLinear) would make a token's scores depend on its neighbours, so the
row's scale is taken by hand. Every product is one node, ``specplug.RowQuantizedProduct``, which the
graph itself defines as a function of ONNX Runtime's operators:

    peak = max|x|;  u8 = QuantizeLinear(x / peak, 1/127, zero 128)
    y = MatMulIntegerToFloat(u8, weight, peak, column scales / 127, zero 128)

ONNX Runtime runs the function, or, where it is registered, the operator of that name in
``engines/native/ops``, which does the same in one go, bit for bit.

The scale of the first factor may be a tensor that broadcasts over the output: then the kernel
multiplies by it last. (As a scalar it would be folded into the column scales first, and round
otherwise; a peak of one row is [1, 1, 1], which does not count as one.) Activations are unsigned:
ONNX Runtime's signed kernel is ten times slower. A row of zeros gives 0/0, which QuantizeLinear
turns into some integer and the peak of 0 into zeros again. Products that read the same input round
it once each in the graph; ONNX Runtime merges these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.blocks import Array, by_columns
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import MICROSOFT, constant, linear_layers, replace

_LEVELS = 127


DOMAIN = "specplug"
OPERATOR = "RowQuantizedProduct"


class QuantizeW8A8(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace every linear layer by an integer product.

    Args:
        keep: layers for which it says yes stay in fp32.
    """

    def __init__(self, *, keep: Keep = keep_none) -> None:
        super().__init__()
        self._keep = keep

    def call(self, model: Any) -> Any:
        """Quantize every linear layer, the LM head too."""
        graph = model.graph
        modified = False
        for layer in linear_layers(
            graph
        ):  # one by one: a layer's input may be the last one's output
            if self._keep(layer):
                continue
            modified = True
            weight, scales = quantize_columns(layer.weight())
            product = ir.node(
                OPERATOR,
                [
                    layer.input,
                    constant(graph, f"{layer.name}_w8", weight),
                    constant(graph, f"{layer.name}_w8_scales", scales / np.float32(_LEVELS)),
                ],
                domain=DOMAIN,
            )
            graph.insert_before(layer.node, product)
            replace(graph, layer.output, product.outputs[0])
        if modified:
            model.functions[DOMAIN, OPERATOR, ""] = _definition(model.opset_imports)
            model.opset_imports.update({DOMAIN: 1, MICROSOFT: 1})
        return ir.passes.PassResult(model, modified=modified)


def _definition(opset_imports: dict[str, int]) -> Any:
    """The operator in terms of others."""
    x, weight, scales = (ir.val(name) for name in ("x", "weight", "scales"))

    def fixed(name: str, values: Array) -> Any:
        return ir.node("Constant", [], {"value": ir.tensor(values, name=name)})

    axis = fixed("axis", np.array([-1], dtype=np.int64))
    step = fixed("step", np.array(1 / _LEVELS, dtype=np.float32))
    zero = fixed("zero", np.array(128, dtype=np.uint8))
    absolute = ir.node("Abs", [x])
    peak = ir.node("ReduceMax", [absolute.outputs[0], axis.outputs[0]], {"keepdims": 1})
    unit = ir.node("Div", [x, peak.outputs[0]])
    rounded = ir.node("QuantizeLinear", [unit.outputs[0], step.outputs[0], zero.outputs[0]])
    factors = [rounded.outputs[0], weight, peak.outputs[0], scales, zero.outputs[0]]
    product = ir.node("MatMulIntegerToFloat", factors, domain=MICROSOFT)
    body = ir.Graph(
        [x, weight, scales],
        product.outputs,
        nodes=[axis, step, zero, absolute, peak, unit, rounded, product],
        opset_imports={"": opset_imports[""], MICROSOFT: 1},
        name=OPERATOR,
    )
    return ir.Function(DOMAIN, OPERATOR, graph=body, attributes=[])


def quantize_columns(weight: Array) -> tuple[Array, Array]:
    """Round f32[K, N] to i8[K, N] and one scale a column, f32[N]; 0 where a column is all 0."""
    parts = by_columns(_quantize_columns, weight)
    integers, scales = zip(*parts, strict=True)
    return np.concatenate(integers, axis=1), np.concatenate(scales)


def _quantize_columns(weight: Array) -> tuple[Array, Array]:
    scales = (np.abs(weight).max(axis=0) / _LEVELS).astype(np.float32)
    safe = np.where(scales == 0, 1, scales)
    return np.rint(weight / safe).astype(np.int8), scales
