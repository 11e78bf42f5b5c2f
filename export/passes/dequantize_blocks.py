"""Weights in blocks of 32 by ONNX's own DequantizeLinear, for graphs without contrib operators."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from specplug.export.blocks import BLOCK_SIZE, Blocks, Rounding, nearest
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import Linear, constant, insert, linear_layers, replace

_TYPES = {4: ml_dtypes.int4, 8: np.int8}


class DequantizeBlocks(ir.passes.InPlacePass):  # type: ignore[misc]
    """Store linear layers as integers, and multiply by what DequantizeLinear makes of them.

    Integers are signed and have no zero points: TensorRT takes no others. ONNX Runtime fuses the
    pair into MatMulNBits when it loads the graph.

    Args:
        bits: 4 or 8, of all layers but the LM head.
        head_bits: of the LM head.
        rounding: how weights become blocks, without zero points or offsets.
        keep: layers for which it says yes stay as they are.
    """

    def __init__(
        self,
        *,
        bits: int = 4,
        head_bits: int = 8,
        rounding: Rounding = nearest,
        keep: Keep = keep_none,
    ) -> None:
        super().__init__()
        self._bits = bits
        self._head_bits = head_bits
        self._rounding = rounding
        self._keep = keep

    def call(self, model: Any) -> Any:
        """Quantize; layers whose input is no multiple of the block size stay as they are."""
        graph = model.graph
        modified = False
        for layer in linear_layers(graph):
            if layer.shape[0] % BLOCK_SIZE or self._keep(layer):
                continue
            bits = self._head_bits if layer.is_head else self._bits
            blocks = self._rounding(layer.weight(), bits)
            if blocks is not None:
                _replace(graph, layer, blocks)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _replace(graph: Any, layer: Linear, blocks: Blocks) -> None:
    if blocks.zero_points is not None or blocks.offsets is not None:
        raise ValueError("blocks with zero points or offsets have no place here")
    name = f"{layer.name}_int{blocks.bits}"
    signed = blocks.integers.reshape(len(blocks.integers), -1).T.astype(np.int16)
    stored = (signed - (1 << (blocks.bits - 1))).astype(_TYPES[blocks.bits])
    scales = np.where(blocks.scales, blocks.scales, 1)  # of zeros; TensorRT refuses a scale of 0
    inputs = [constant(graph, name, stored), constant(graph, f"{name}_scales", scales.T)]
    weight = insert(graph, layer.node, "DequantizeLinear", inputs, axis=0, block_size=BLOCK_SIZE)
    product = insert(graph, layer.node, "MatMul", [layer.input, weight])
    replace(graph, layer.output, product)
