"""Weights in 4 or 8 bits, by blocks, as MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.blocks import BLOCK_SIZE, Blocks, Rounding, nearest
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import MICROSOFT, Linear, constant, linear_layers, replace

INT8_ACTIVATIONS = 4
"""MatMulNBits' "accuracy level" at which the kernel rounds activations to int8, by blocks."""


def blocks_name(weight: str, bits: int) -> str:
    """The name of the integers that stand for a weight."""
    return f"{weight}_int{bits}"


class QuantizeNBits(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace every linear layer by MatMulNBits.

    Args:
        bits: of the layers' weights, 4 or 8.
        head_bits: of the LM head's, which suffers most from rounding.
        rounding: how weights become blocks; a layer for which it gives none stays as it is.
        keep: layers for which it says yes stay as they are.
        accuracy_level: of the kernel; 0 leaves activations in fp32, and is slow.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        head_bits: int = 8,
        rounding: Rounding = nearest,
        keep: Keep = keep_none,
        accuracy_level: int = INT8_ACTIVATIONS,
    ) -> None:
        super().__init__()
        self._bits = bits
        self._head_bits = head_bits
        self._rounding = rounding
        self._keep = keep
        self._accuracy_level = accuracy_level

    def call(self, model: Any) -> Any:
        """Quantize; layers whose input is no multiple of the block size stay as they are."""
        graph = model.graph
        modified = False
        for layer in linear_layers(graph):
            if layer.shape[0] % BLOCK_SIZE or self._keep(layer):
                continue
            bits = self._head_bits if layer.is_head else self._bits
            blocks = self._rounding(layer.weight(), bits)
            if blocks is None:
                continue
            value, inner = layer.input, layer.shape[0]
            if blocks.offsets is not None:
                value = _with_sums(graph, layer)
                inner += inner // BLOCK_SIZE
                blocks = blocks.with_offsets_folded()
            self._replace(graph, layer, value, inner, blocks)
            modified = True
        return ir.passes.PassResult(model, modified=modified)

    def _replace(self, graph: Any, layer: Linear, value: Any, inner: int, blocks: Blocks) -> None:
        name = blocks_name(layer.name, blocks.bits)
        inputs = [
            value,
            constant(graph, name, blocks.packed()),
            constant(graph, f"{name}_scales", blocks.scales),
        ]
        zero_points = blocks.packed_zero_points()
        if zero_points is not None:
            inputs.append(constant(graph, f"{name}_zero_points", zero_points))
        attributes = {
            "K": inner,
            "N": layer.shape[1],
            "bits": blocks.bits,
            "block_size": BLOCK_SIZE,
            "accuracy_level": self._accuracy_level,
        }
        product = ir.node("MatMulNBits", inputs, attributes, domain=MICROSOFT)
        graph.insert_before(layer.node, product)
        replace(graph, layer.output, product.outputs[0])


def _with_sums(graph: Any, layer: Linear) -> Any:
    """A layer's input, followed by its sums over every 32: what offsets are the weights of."""
    count = layer.shape[0] // BLOCK_SIZE
    rank = 3 if layer.input.shape is None else len(layer.input.shape)
    shape = np.array([*[0] * (rank - 1), count, BLOCK_SIZE])
    blocked = ir.node(
        "Reshape", [layer.input, constant(graph, f"in_{count}_blocks_of_{rank}", shape)]
    )
    last = constant(graph, "last_axis", np.array([-1]))
    sums = ir.node("ReduceSum", [blocked.outputs[0], last], {"keepdims": 0})
    joined = ir.node("Concat", [layer.input, sums.outputs[0]], {"axis": -1})
    graph.insert_before(layer.node, [blocked, sums, joined])
    return joined.outputs[0]
