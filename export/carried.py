"""The blocks of a GGUF file, carried over to a graph's layers without a second rounding.

A layer's columns are looked up by content among the file's dequantized rows. So neither the
reader's order of query and key rows nor packed layers (a concatenation along the outputs) need
to be known here: a block runs along the inputs, and a row keeps its blocks wherever it went.

MatMulNBits holds Q4_0 (4 bits) and Q8_0 (8 bits) as they are. Q4_1 and Q4_K have a minimum that is
no multiple of the scale. With float zero points ONNX Runtime 1.32's CPU kernel would dequantize the
whole matrix at each call (50 times slower, and its single rows depend on the width). So the
minimum's whole steps become the zero point and the rest an offset, for which the layer gets the
sums of its inputs as further inputs. The other types, in blocks of 16 or with more than 4 bits,
are rounded again, in 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind

from specplug.checkpoint_path import check_gguf
from specplug.export.blocks import BLOCK_SIZE, Array, Blocks, nearest

_IN_4_BITS = (Kind.Q4_0, Kind.Q4_1, Kind.Q4_K)
_IN_8_BITS = (Kind.Q4_0, Kind.Q8_0)
_WITH_MINIMUM = (Kind.Q4_1, Kind.Q4_K)
_UNQUANTIZED = (Kind.F32, Kind.F16, Kind.BF16)
_READ_AT_ONCE = 1 << 20  # weights; bounds the memory of dequantized rows


def carried_bytes_a_weight(path: Path) -> float:
    """Bytes that a weight of the file's matrices takes once carried over, on average."""
    sizes: Counter[str] = Counter()
    for tensor in gguf.GGUFReader(path).tensors:
        if len(tensor.shape) == 2:
            sizes[tensor.tensor_type.name] += int(tensor.n_elements)
    return sum(n * _bytes_a_weight(Kind[name]) for name, n in sizes.items()) / sizes.total()


def _bytes_a_weight(kind: Kind) -> float:
    if kind in _UNQUANTIZED:
        return 4
    scale = 4 / BLOCK_SIZE
    if kind not in _IN_4_BITS:
        return 1 + scale
    with_zeros = (4 + 4 / BLOCK_SIZE) / 8 + scale if kind in _WITH_MINIMUM else 0.5 + scale
    return with_zeros * (1 + 1 / BLOCK_SIZE) if kind in _WITH_MINIMUM else with_zeros


class CarriedBlocks:
    """What a GGUF file's own quantization gives for a matrix.

    Args:
        path: the file.

    Raises:
        ExportError: not a GGUF file.
    """

    def __init__(self, path: Path) -> None:
        check_gguf(path)
        stored = gguf.GGUFReader(path).tensors
        self._tensors = [_Tensor(tensor) for tensor in stored if len(tensor.shape) == 2]
        rows = [(_hashes(part), i, at) for i, at, part in self._parts()]
        hashes = np.concatenate([found for found, _, _ in rows])
        tensors = np.concatenate([np.full(len(found), i) for found, i, _ in rows])
        places = np.concatenate([at + np.arange(len(found)) for found, _, at in rows])
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._tensor_of, self._row_of = hashes[order], tensors[order], places[order]
        self._kept: set[int] = set()
        self._rounded: set[int] = set()

    def _parts(self) -> Iterator[tuple[int, int, Array]]:
        for i, tensor in enumerate(self._tensors):
            step = max(1, _READ_AT_ONCE // tensor.inner)
            for at in range(0, tensor.rows, step):
                yield i, at, tensor.values(np.arange(at, min(at + step, tensor.rows)))

    def blocks(self, weight: Array, *, with_offsets: bool = True) -> Blocks | None:
        """The blocks of f32[K, N]; None if the file has all of it in floating point.

        In 4 bits if all columns are of 4-bit types, else in 8; what cannot be kept, or is not a
        row of the file, is rounded to the nearest.

        Args:
            weight: the matrix.
            with_offsets: whether blocks may have offsets, which Q4_1 and Q4_K in 4 bits need.
        """
        columns = np.ascontiguousarray(weight.T)
        tensors, rows = self._find(columns)
        telling = set(tensors[columns.any(axis=1)].tolist())  # zeros are in every type
        kinds = {self._tensors[i].kind for i in telling - {-1}}
        if -1 not in telling and kinds <= set(_UNQUANTIZED):
            return None
        in_4_bits = set(_IN_4_BITS) if with_offsets else set(_IN_4_BITS) - set(_WITH_MINIMUM)
        bits = 4 if -1 not in telling and kinds <= in_4_bits else 8
        holds = _IN_4_BITS if bits == 4 else _IN_8_BITS
        kept = {i for i in telling if i >= 0 and self._tensors[i].kind in holds}
        self._kept |= kept
        self._rounded |= telling - kept
        made = nearest(columns.T, bits)
        zeros = np.full(made.scales.shape, 1 << (bits - 1), dtype=np.uint8)
        offsets = np.zeros(made.scales.shape, dtype=np.float32)
        for i in kept:
            at = np.flatnonzero((tensors == i) & columns.any(axis=1))
            stored = self._tensors[i].blocks(rows[at], bits)
            made.integers[at], made.scales[at] = stored.integers, stored.scales
            if stored.zero_points is not None and stored.offsets is not None:
                zeros[at], offsets[at] = stored.zero_points, stored.offsets
        if not kinds & set(_WITH_MINIMUM) or bits == 8:
            return made
        return replace(made, zero_points=zeros, offsets=offsets)

    def rounding(self, weight: Array, bits: int) -> Blocks | None:
        """:meth:`blocks` for the quantization pass: the file decides how many bits."""
        return self.blocks(weight)

    def table_rounding(self, weight: Array, bits: int) -> Blocks | None:
        """:meth:`blocks` for embedding tables: lookups have no offsets."""
        return self.blocks(weight, with_offsets=False)

    def _find(self, columns: Array) -> tuple[Array, Array]:
        """Tensor and row of each column, i64[N]; tensor -1 where the file does not have it."""
        wanted = _hashes(columns)
        at = np.minimum(np.searchsorted(self._hashes, wanted), len(self._hashes) - 1)
        tensors, rows = self._tensor_of[at].copy(), self._row_of[at]
        for i in set(tensors.tolist()):
            mine = np.flatnonzero(tensors == i)
            same_length = self._tensors[i].inner == columns.shape[1]
            equal = (
                (self._tensors[i].values(rows[mine]) == columns[mine]).all(axis=1)
                if same_length
                else np.zeros(len(mine), dtype=bool)
            )
            tensors[mine[~equal]] = -1
        return tensors, rows

    def summary(self) -> str:
        """What became of the matrices so far, in one sentence."""
        kept = ", ".join(f"{n} of type {kind}" for kind, n in self._count(self._kept)) or "none"
        again = ", ".join(f"{n} of type {kind}" for kind, n in self._count(self._rounded))
        text = f"the file's own blocks are kept for {kept}"
        if again:
            text += (
                f"; rounded again, in 8 bits, since the kernel has no such blocks: {again} "
                "(--precision int4 is smaller)"
            )
        return text

    def rounded(self) -> dict[str, int]:
        """Number of the file's tensors by type that :meth:`blocks` had to round again so far.

        Under ``"changed"``: 1 if there were columns that are no rows of the file.
        """
        return dict(self._count(self._rounded))

    def _count(self, tensors: set[int]) -> list[tuple[str, int]]:
        names = [self._tensors[i].type_name if i >= 0 else "changed" for i in tensors]
        return sorted(Counter(names).items())


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A matrix of the file, read row by row."""

    stored: gguf.ReaderTensor

    @property
    def rows(self) -> int:
        return int(self.stored.shape[1])

    @property
    def inner(self) -> int:
        return int(self.stored.shape[0])

    @property
    def kind(self) -> Kind:
        return self.stored.tensor_type

    @property
    def type_name(self) -> str:
        return "floating point" if self.kind in _UNQUANTIZED else self.kind.name

    def _bytes(self, rows: Array) -> Array:
        return np.asarray(self.stored.data)[rows]

    def values(self, rows: Array) -> Array:
        """f32[n, inner]."""
        values: Array = gguf.dequantize(self._bytes(rows), self.kind)
        return values

    def blocks(self, rows: Array, bits: int) -> Blocks:
        """The stored blocks of some rows, in as many bits or more."""
        raw = self._bytes(rows).reshape(len(rows), -1, GGML_QUANT_SIZES[self.kind][1])
        if self.kind in _WITH_MINIMUM:
            return _with_minimum(*(_q4_1 if self.kind == Kind.Q4_1 else _q4_k)(raw))
        stored = raw[..., 2:]
        signed = stored if self.kind == Kind.Q8_0 else _nibbles(stored) - np.uint8(8)
        return Blocks(bits, signed + np.uint8(1 << (bits - 1)), _halves(raw, 0))


def _halves(raw: Array, start: int) -> Array:
    """The fp16 at a byte of each block, f32[..., n]."""
    return np.ascontiguousarray(raw[..., start : start + 2]).view("<f2")[..., 0].astype(np.float32)


def _nibbles(stored: Array) -> Array:
    """The first half of a block's values lies in the low nibbles, the second in the high."""
    return np.concatenate([stored & 15, stored >> 4], axis=-1)


def _q4_1(raw: Array) -> tuple[Array, Array, Array]:
    """Integers u8[n, b, 32], scales f32[n, b] and minima f32[n, b]."""
    return _nibbles(raw[..., 4:]), _halves(raw, 0), _halves(raw, 2)


def _q4_k(raw: Array) -> tuple[Array, Array, Array]:
    """As of Q4_1; eight blocks share two fp16, times 6 bits each, packed as ggml does."""
    rows = len(raw)
    low, middle, high = raw[..., 4:8], raw[..., 8:12], raw[..., 12:16]
    steps = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=-1)
    minima = np.concatenate([middle & 63, (high >> 4) | ((middle >> 6) << 4)], axis=-1)
    integers = _nibbles(raw[..., 16:].reshape(rows, -1, 4, BLOCK_SIZE))
    return (
        integers.reshape(rows, -1, BLOCK_SIZE),
        (_halves(raw, 0)[..., None] * steps).reshape(rows, -1).astype(np.float32),
        -(_halves(raw, 2)[..., None] * minima).reshape(rows, -1).astype(np.float32),
    )


def _with_minimum(integers: Array, scales: Array, minima: Array) -> Blocks:
    """A minimum as whole steps and an offset."""
    zeros = np.clip(np.rint(-minima / np.where(scales == 0, 1, scales)), 0, 15)
    offsets = (minima + zeros * scales).astype(np.float32)
    return Blocks(4, integers, scales, zeros.astype(np.uint8), offsets)


def _hashes(rows: Array) -> Array:
    """u64[n] of f32[n, K]; equality is checked after, so that speed is all it needs."""
    factors = np.random.default_rng(rows.shape[1]).integers(
        0, 1 << 63, size=rows.shape[1], dtype=np.uint64
    )
    step = max(1, _READ_AT_ONCE // rows.shape[1])
    parts = [
        np.ascontiguousarray(rows[at : at + step]).view(np.uint32).astype(np.uint64) @ factors
        for at in range(0, len(rows), step)
    ]
    return np.concatenate(parts)
