"""Quantized matrices in fp32, by the definition of each format.

Computed in fp32 whatever the type of the scales: the values are those that the integers and the
scales stand for, without a rounding to 16 bits in between.
"""

from __future__ import annotations

import torch

from specplug.types import ExportError

Tensor = torch.Tensor

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's: of each 8 columns, the one that the n-th lowest 4 bits of a word hold."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""What the lower 3 bits of an e2m1 number stand for; the fourth is the sign."""


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers that lie one after another in 32-bit words, the lowest bits first.

    Args:
        words: i32[..., W].
        bits: of each integer, 1 to 8; they may begin in one word and end in the next.
        count: how many to take of each row; at most ``32 * W // bits``.

    Returns:
        i64[..., count].
    """
    given = words.long() & 0xFFFFFFFF
    starts = torch.arange(count) * bits
    first, offset = starts // 32, starts % 32
    second = (first + 1).clamp(max=words.shape[-1] - 1)
    both = given[..., first] >> offset
    return (both | (given[..., second] << (32 - offset))) & ((1 << bits) - 1)


def unpack_fp4(packed: Tensor) -> Tensor:
    """Numbers in e2m1, two a byte, the lower 4 bits first: u8[R, C] to f32[R, 2 * C]."""
    table = torch.tensor([*_FP4, *(-value for value in _FP4)])
    halves = torch.stack([packed & 0xF, packed >> 4], dim=-1).long()
    return table[halves].flatten(-2)


def scale_values(scale: Tensor) -> Tensor:
    """Scales in fp32; bytes are exponents of 2, biased by 127 (e8m0)."""
    if scale.dtype == torch.uint8:
        return torch.exp2(scale.float() - 127)
    return scale.float()


def spread(scale: Tensor, shape: tuple[int, int], block: tuple[int, int], name: str) -> Tensor:
    """One value for each number of a matrix, from one for each block; the last may be cut off.

    Args:
        scale: f32[ceil(R / r), ceil(C / c)], or any shape if all are in one block.
        shape: R and C.
        block: r and c.
        name: of the scale, for errors.

    Raises:
        ExportError: the scale is of another shape.
    """
    (rows, columns), (height, width) = shape, block
    wanted = -(-rows // height), -(-columns // width)
    if scale.numel() != wanted[0] * wanted[1] or (scale.ndim == 2 and scale.shape != wanted):
        raise ExportError(
            f"{name} is of shape {tuple(scale.shape)}, and {rows} x {columns} numbers in blocks of "
            f"{height} x {width} have scales of shape {wanted}"
        )
    whole = scale.reshape(wanted)
    if height > 1:
        whole = whole.repeat_interleave(height, 0)[:rows]
    if width > 1:
        whole = whole.repeat_interleave(width, 1)[:, :columns]
    return whole


def gptq(
    words: Tensor, zeros: Tensor, scales: Tensor, groups: Tensor, bits: int, offset: int | None
) -> Tensor:
    """A matrix of AutoGPTQ's or GPTQModel's, f32[out, in].

    Args:
        words: i32[in * bits / 32, out], packed along the inputs.
        zeros: i32[G, out * bits / 32], packed along the outputs.
        scales: f16[G, out].
        groups: i64[in], the group of each input.
        bits: of each number.
        offset: what a stored zero point is too small by; None: zero points are the middle.
    """
    integers = unpack_bits(words.T.contiguous(), bits, len(groups)).float()
    middle = torch.full(scales.shape, 1 << (bits - 1))
    if offset is not None:
        stored = unpack_bits(zeros, bits, scales.shape[1])
        middle = (stored + offset) & ((1 << bits) - 1)
    return (integers - middle[groups].T.float()) * scales.float()[groups].T


def awq(words: Tensor, zeros: Tensor, scales: Tensor) -> Tensor:
    """A matrix of AutoAWQ's kind "gemm", f32[out, in].

    Args:
        words: i32[in, out / 8].
        zeros: i32[G, out / 8].
        scales: f16[G, out].
    """

    def columns(packed: Tensor) -> Tensor:
        found = unpack_bits(packed, 4, 8 * packed.shape[1]).reshape(len(packed), -1, 8)
        ordered = torch.empty_like(found)
        ordered[..., list(AWQ_ORDER)] = found
        return ordered.flatten(1).float()

    size = len(words) // len(scales)
    middle, steps = (each.repeat_interleave(size, 0) for each in (columns(zeros), scales.float()))
    return ((columns(words) - middle) * steps).T.contiguous()
