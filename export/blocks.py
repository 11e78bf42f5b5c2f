"""Matrices in blocks of 32 inputs, as MatMulNBits reads them, and the ways to round to them."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from onnxruntime.quantization.neural_compressor.weight_only import quant_tensor_k_quant_cpu

BLOCK_SIZE = 32  # with 64 and more, MatMulNBits' rows depend on the width of the call by 1e-6

_ROUNDED_AT_ONCE = 1 << 18  # weights of a core; k-quant's temporaries are ten times that

Array = np.ndarray[Any, Any]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Blocks:
    """A matrix f32[K, N] as integers with a scale for every 32 inputs of a column.

    A weight is ``(integer - zero point) * scale``, plus its block's offset if there are any.
    """

    bits: int
    """4 or 8."""
    integers: Array  # u8[N, K/32, 32], one a byte also in 4 bits
    scales: Array  # f32[N, K/32]
    zero_points: Array | None = None  # u8[N, K/32]; None: half the range
    offsets: Array | None = None  # f32[N, K/32]; the kernel has none: see with_offsets_folded

    def packed(self) -> Array:
        """The integers as the kernel stores them: u8[N, K/32, 4 * bits], low nibble first."""
        return pack_nibbles(self.integers) if self.bits == 4 else self.integers

    def packed_zero_points(self) -> Array | None:
        """The zero points as the kernel stores them: u8[N, ceil(K/32 * bits / 8)]."""
        if self.zero_points is None or self.bits == 8:
            return self.zero_points
        odd = self.zero_points.shape[1] % 2
        return pack_nibbles(np.pad(self.zero_points, ((0, 0), (0, odd))))

    def values(self) -> Array:
        """The matrix that the blocks stand for, f32[N, K]: a row of it is a column of weights."""
        zero: Any = 1 << (self.bits - 1)
        if self.zero_points is not None:
            zero = self.zero_points[..., None].astype(np.float32)
        values = (self.integers.astype(np.float32) - zero) * self.scales[..., None]
        if self.offsets is not None:
            values += self.offsets[..., None]
        return np.asarray(values).reshape(len(values), -1)

    def with_offsets_folded(self) -> Blocks:
        """The same matrix for inputs that are followed by their sums over each 32.

        An offset is the weight of such a sum: K/32 inputs more, rounded like any others, which
        leaves a fifteenth of the offsets' own range as their error.
        """
        if self.offsets is None or self.zero_points is None:
            raise ValueError("blocks without offsets or zero points: nothing to fold")
        short = -self.offsets.shape[1] % BLOCK_SIZE
        tail = k_quant(np.pad(self.offsets, ((0, 0), (0, short))).T, self.bits)
        return Blocks(
            self.bits,
            np.concatenate([self.integers, tail.integers], axis=1),
            np.concatenate([self.scales, tail.scales], axis=1),
            np.concatenate([self.zero_points, np.asarray(tail.zero_points)], axis=1),
        )


Rounding = Callable[[Array, int], Blocks | None]
"""From f32[K, N], K a multiple of 32, and a number of bits to blocks, if it has any for it."""


def pack_nibbles(values: Array) -> Array:
    """Two 4-bit values a byte along the last axis, the first in the low half."""
    return np.asarray(values[..., 0::2] | (values[..., 1::2] << 4))


def split_blocks(weight: Array) -> Array:
    """f32[K, N] as f32[N, K/32, 32]."""
    inner, outer = weight.shape
    return np.ascontiguousarray(weight.T).reshape(outer, inner // BLOCK_SIZE, BLOCK_SIZE)


def nearest(weight: Array, bits: int) -> Blocks:
    """Round to symmetric integers: the value farthest from 0 sets the scale of its block."""
    parts = by_columns(lambda part: _nearest(split_blocks(part), bits), weight)
    integers, scales = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Blocks(bits, integers, scales)


def k_quant(weight: Array, bits: int) -> Blocks:
    """Search each block's scale and zero point for the least error, large weights counting more.

    llama.cpp's method, as ONNX Runtime ships it. Its zero points are clipped to the range
    without a new fit, which spoils blocks whose values all have one sign: those, and any other
    that :func:`nearest` comes closer to, are rounded to nearest.
    """
    parts = by_columns(lambda part: _k_quant(split_blocks(part), bits), weight)
    integers, scales, zeros = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Blocks(bits, integers, scales, zeros)


def by_columns(function: Callable[[Array], T], weight: Array) -> list[T]:
    """Apply a function to some columns of f32[K, N] after the other, on every core.

    What it needs in between is bounded so: an LM head is a gigabyte by itself.
    """
    columns = max(1, _ROUNDED_AT_ONCE // weight.shape[0])
    parts = [weight[:, i : i + columns] for i in range(0, weight.shape[1], columns)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # numpy lets go of the interpreter
        return list(pool.map(function, parts))


def _nearest(blocks: Array, bits: int) -> tuple[Array, Array]:
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1, keepdims=True), axis=-1)
    half = 1 << (bits - 1)
    # In 4 bits the value farthest from 0 sits on -8, the end of the range that has one more.
    scales = largest / -half if bits == 4 else np.abs(largest) / (half - 1)
    safe = np.where(scales == 0, 1, scales)
    rounded = np.clip(np.rint(blocks / safe) + half, 0, 2 * half - 1).astype(np.uint8)
    return rounded, scales[..., 0].astype(np.float32)


def _k_quant(blocks: Array, bits: int) -> tuple[Array, Array, Array]:
    shape = blocks.shape
    with np.errstate(all="ignore"):  # blocks of one value divide by their range of 0
        found, scales, zeros = quant_tensor_k_quant_cpu(blocks, bits, BLOCK_SIZE)
    zeros = zeros.reshape(shape[:2])
    fitted = Blocks(
        bits,
        found.astype(np.uint8).reshape(shape),
        scales.astype(np.float32).reshape(shape[:2]),
        zeros,
    )
    plain = Blocks(bits, *_nearest(blocks, bits))

    def error(made: Blocks) -> Array:
        return np.asarray(((made.values().reshape(shape) - blocks) ** 2).sum(axis=-1))

    better = error(fitted) <= error(plain)
    return (
        np.where(better[..., None], fitted.integers, plain.integers),
        np.where(better, fitted.scales, plain.scales),
        np.where(better, zeros, np.uint8(1 << (bits - 1))),
    )
