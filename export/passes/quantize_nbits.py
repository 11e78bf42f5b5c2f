"""Weights in 4 or 8 bits, by blocks, as MatMulNBits."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import MICROSOFT, constant, linear_layers, replace

BLOCK_SIZE = 32  # with 64 and more, MatMulNBits' rows depend on the width of the call by 1e-6
_INT8_ACTIVATIONS = 4  # "accuracy level": the kernel rounds activations to int8, by blocks


class QuantizeNBits(ir.passes.InPlacePass):  # type: ignore[misc]
    """Replace every linear layer by MatMulNBits, rounding to nearest.

    Args:
        bits: of the layers' weights, 4 or 8.
        head_bits: of the LM head's, which suffers most from rounding.
    """

    def __init__(self, *, bits: int = 4, head_bits: int = 8) -> None:
        super().__init__()
        self._bits = bits
        self._head_bits = head_bits

    def call(self, model: Any) -> Any:
        """Quantize; layers whose input is no multiple of the block size stay as they are."""
        graph = model.graph
        modified = False
        for layer in linear_layers(graph):
            inner, outer = layer.weight.shape
            if inner % BLOCK_SIZE:
                continue
            bits = self._head_bits if layer.is_head else self._bits
            packed, scales = quantize_blocks(layer.weight, bits)
            name = f"{layer.name}_int{bits}"
            product = ir.node(
                "MatMulNBits",
                [
                    layer.input,
                    constant(graph, name, packed),
                    constant(graph, f"{name}_scales", scales),
                ],
                {
                    "K": inner,
                    "N": outer,
                    "bits": bits,
                    "block_size": BLOCK_SIZE,
                    "accuracy_level": _INT8_ACTIVATIONS,
                },
                domain=MICROSOFT,
            )
            graph.insert_before(layer.node, product)
            replace(graph, layer.output, product.outputs[0])
            modified = True
        return ir.passes.PassResult(model, modified=modified)


def quantize_blocks(
    weight: np.ndarray[Any, Any], bits: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Round a matrix to symmetric integers with one scale per block of 32 inputs.

    Args:
        weight: f32[K, N], K a multiple of 32.
        bits: 4 or 8.

    Returns:
        ``(packed, scales)``: u8[N, K/32, 32 * bits/8], offset by half the range, low nibble
        first; and f32[N, K/32].
    """
    inner, outer = weight.shape
    blocks = np.ascontiguousarray(weight.T).reshape(outer, inner // BLOCK_SIZE, BLOCK_SIZE)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    half = 1 << (bits - 1)
    # In 4 bits the value farthest from 0 sits on -8, the end of the range that has one more.
    scales = largest / -half if bits == 4 else np.abs(largest) / (half - 1)
    safe = np.where(scales == 0, 1, scales)
    rounded = np.clip(np.rint(blocks / safe) + half, 0, 2 * half - 1).astype(np.uint8)
    packed = rounded[..., 0::2] | (rounded[..., 1::2] << 4) if bits == 4 else rounded
    return packed, scales[..., 0].astype(np.float32)
