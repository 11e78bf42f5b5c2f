"""The blocks of a GGUF file, carried over to a graph's layers without a second rounding.

A layer's columns are looked up by content among the file's dequantized rows. So neither the
reader's order of query and key rows nor packed layers (a concatenation along the outputs) need
to be known here: a block runs along the inputs, and a row keeps its blocks wherever it went.

MatMulNBits holds Q4_0 (4 bits) and Q8_0 (8 bits) as they are. It does not hold the other types:
their minimum is no multiple of the scale, and with float zero points ONNX Runtime 1.32's CPU kernel
dequantizes the whole matrix at each call (50 times slower, and its single rows depend on the
width); or their blocks are of 16. Those are rounded again, in 8 bits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.integrations.gguf.dequant import (
    GGML_BLOCK,
    GGML_NAME,
    GGML_Q4_0,
    GGML_Q8_0,
    dequantize,
)
from transformers.integrations.gguf.reader import GgufHeader, load_gguf_state_dict

from specplug.export.blocks import BLOCK_SIZE, Array, Blocks, nearest
from specplug.types import ExportError

_KEPT = (GGML_Q4_0, GGML_Q8_0)
_READ_AT_ONCE = 1 << 20  # weights; bounds the memory of dequantized rows


def check_gguf(path: Path) -> None:
    """Refuse any other kind of source.

    Raises:
        ExportError: not a GGUF file.
    """
    if path.suffix != ".gguf":
        raise ExportError(
            f"--precision gguf keeps the quantization of a GGUF file, and {path.name} is none: "
            "choose another precision"
        )


class CarriedBlocks:
    """What a GGUF file's own quantization gives for a matrix.

    Args:
        path: the file.

    Raises:
        ExportError: not a GGUF file.
    """

    def __init__(self, path: Path) -> None:
        check_gguf(path)
        header = GgufHeader.from_file(str(path))
        matrices = [info for info in header.tensors if len(info.shape) == 2]
        lazy = load_gguf_state_dict(header)
        self._tensors = [_Tensor(lazy[info.name], info.shape) for info in matrices]
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

    def blocks(self, weight: Array) -> Blocks | None:
        """The blocks of f32[K, N]; None if the file has all of it in floating point.

        In 4 bits if all columns are Q4_0, else in 8; what cannot be kept, or is not a row of the
        file, is rounded to the nearest.
        """
        columns = np.ascontiguousarray(weight.T)
        tensors, rows = self._find(columns)
        telling = set(tensors[columns.any(axis=1)].tolist())  # zeros are in every type
        kinds = {self._tensors[i].kind for i in telling - {-1}}
        if -1 not in telling and not kinds & GGML_BLOCK.keys():
            return None
        keep = np.isin(tensors, [i for i, t in enumerate(self._tensors) if t.kind in _KEPT])
        keep &= columns.any(axis=1)
        self._kept |= {i for i in telling if i >= 0 and self._tensors[i].kind in _KEPT}
        self._rounded |= {i for i in telling if i < 0 or self._tensors[i].kind not in _KEPT}
        bits = 4 if kinds == {GGML_Q4_0} and -1 not in telling else 8
        made = Blocks(
            bits,
            np.empty((len(columns), columns.shape[1] // BLOCK_SIZE, BLOCK_SIZE), dtype=np.uint8),
            np.empty((len(columns), columns.shape[1] // BLOCK_SIZE), dtype=np.float32),
        )
        if not keep.all():
            rounded = nearest(columns[~keep].T, bits)
            made.integers[~keep], made.scales[~keep] = rounded.integers, rounded.scales
        for i in set(tensors[keep].tolist()):
            at = np.flatnonzero(tensors == i)
            integers, scales = self._tensors[i].blocks(rows[at])
            made.integers[at] = integers + np.uint8(1 << (bits - 1))
            made.scales[at] = scales
        return made

    def rounding(self, weight: Array, bits: int) -> Blocks | None:
        """:meth:`blocks` for the quantization pass: the file decides how many bits."""
        return self.blocks(weight)

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

    lazy: Any
    shape: tuple[int, int]

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def inner(self) -> int:
        return self.shape[1]

    @property
    def kind(self) -> int:
        """The ggml type."""
        return int(self.lazy.ggml_type)

    @property
    def type_name(self) -> str:
        return str(GGML_NAME.get(self.kind, "floating point"))

    def _bytes(self, rows: Array) -> Array:
        return np.asarray(self.lazy.data).reshape(self.rows, -1)[rows]

    def values(self, rows: Array) -> Array:
        """f32[n, inner]."""
        if self.kind not in GGML_BLOCK:
            stored = self.lazy[...].reshape(self.shape)[torch.from_numpy(rows)]
            return np.asarray(stored.float().numpy())
        flat = torch.from_numpy(self._bytes(rows).reshape(-1))
        return np.asarray(dequantize(flat, self.kind).reshape(len(rows), -1).numpy())

    def blocks(self, rows: Array) -> tuple[Array, Array]:
        """Signed integers, two's complement, u8[n, inner/32, 32], and scales f32[n, inner/32]."""
        raw = self._bytes(rows).reshape(len(rows), -1, GGML_BLOCK[self.kind][1])
        scales = np.ascontiguousarray(raw[..., :2]).view("<f2")[..., 0].astype(np.float32)
        stored = raw[..., 2:]
        if self.kind == GGML_Q8_0:
            return stored, scales
        nibbles = np.concatenate([stored & 15, stored >> 4], axis=-1)  # 0-15 low, 16-31 high
        return nibbles - np.uint8(8), scales


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
