"""A GGUF file as bytes: its metadata and where its tensors lie, or what is wrong with the file."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Kind
from gguf.quants import _type_traits as _dequantizers

from specplug.types import ExportError

_AGAIN = "download it again"
_FORMATS = {  # what files that are not GGUF begin with
    b"version https://git-lfs": "a Git LFS pointer, not the file: run git lfs pull in its folder",
    b"<": f"a web page, not the file: {_AGAIN}",
    b"PK\x03\x04": "a zip file, as PyTorch writes: convert it with llama.cpp's convert_hf_to_gguf",
    b"lmgg": "a GGML file of before GGUF: convert the checkpoint with today's llama.cpp",
    b"fmgg": "a GGML file of before GGUF: convert the checkpoint with today's llama.cpp",
    b"tjgg": "a GGML file of before GGUF: convert the checkpoint with today's llama.cpp",
}
_SCALARS = {  # by GGUF's number of the type
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_MOST = 1 << 40  # bytes of a part that a file may announce
_MOST_VALUES = 1 << 22  # in all of the metadata: a vocabulary of 262,144 tokens has 1.5 million
_DEEPEST = 8  # arrays within one another
_MOST_DIMENSIONS = 4  # of a tensor, as GGML has it
PLAIN = {Kind.F32: np.float32, Kind.F16: np.float16}
"""Types whose numbers lie in the file as they are."""
TENSOR_TYPES = (*PLAIN, *_dequantizers)
"""What tensors may be stored as."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the file, not read yet."""

    name: str
    shape: tuple[int, ...]
    """As PyTorch counts: the dimension that lies together is the last."""
    kind: Kind
    stored: np.ndarray[Any, Any]
    """Its rows as they lie in the file: numbers, or u8 blocks."""

    def rows(self, part: slice) -> np.ndarray[Any, Any]:
        """Some of its rows, f32."""
        values: np.ndarray[Any, Any] = gguf.dequantize(self.stored[part], self.kind)
        return values


@dataclass(frozen=True, slots=True)
class GgufFile:
    """What a GGUF file holds."""

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


def read_gguf(path: Path) -> GgufFile:
    """Read the header, and map the tensors into memory.

    Raises:
        ExportError: another kind of file, one that is cut off or damaged, of another version or
            byte order, or with tensors of a type that is not read.
    """
    size = path.stat().st_size
    if size == 0:
        raise ExportError(f"{path.name} is empty: {_AGAIN}")
    with path.open("rb") as file:
        mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if bytes(mapped[:4]) != b"GGUF":
        start = bytes(mapped[:24])
        for begins, what in _FORMATS.items():
            if start.lstrip().startswith(begins):
                raise ExportError(f"{path.name} is {what}")
        raise ExportError(f"{path.name} is no GGUF file: it begins with {start[:8]!r}")
    try:
        return _Reader(mapped).read()
    except _CutOffError as error:
        raise ExportError(f"{path.name} is cut off: {error}: {_AGAIN}") from None
    except (ValueError, OverflowError, struct.error) as error:
        raise ExportError(f"{path.name} cannot be read as GGUF: {error}") from error


class _CutOffError(Exception):
    """The file ends before what it announces."""


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.place = 4
        self.values = 0

    def read(self) -> GgufFile:
        version = self.number("I")
        if version & 0xFFFF == 0:
            raise ValueError(
                "it is of another byte order: turn it with llama.cpp's gguf_convert_endian.py"
            )
        if version not in (2, 3):
            raise ValueError(f"it is of version {version}, and 2 and 3 are read")
        tensors, keys = self.number("Q"), self.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self.text("a key")
            if key in metadata:
                raise ValueError(f"it has {key} twice")
            metadata[key] = self.value(self.number("I"), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise ValueError(f"general.alignment is {alignment!r}, and no power of two")
        described = [self.tensor() for _ in range(tensors)]
        start = -(-self.place // alignment) * alignment
        return GgufFile(metadata, self.tensors(described, start, alignment))

    def take(self, size: int) -> memoryview:
        left = len(self.data) - self.place
        if size > _MOST:
            raise ValueError(f"its header announces a part of {size:,} bytes")
        if size > left:
            raise _CutOffError(
                f"it ends after {len(self.data):,} bytes, within its header, "
                f"at least {size - left:,} bytes early"
            )
        self.place += size
        return self.data[self.place - size : self.place]

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def text(self, what: str) -> str:
        found = bytes(self.take(self.number("Q")))
        try:
            return found.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{what} is not UTF-8: {found[:20]!r}") from None

    def value(self, kind: int, key: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text(key)
        if kind != _ARRAY:
            raise ValueError(f"{key} is of type {kind}, which GGUF does not have")
        if depth == _DEEPEST:
            raise ValueError(f"{key} has more than {_DEEPEST} arrays within one another")
        element, count = self.number("I"), self.number("Q")
        if element in _SCALARS:
            code = np.dtype("<" + _SCALARS[element])
            found = self.take(count * code.itemsize)
            self.count(count)
            return np.frombuffer(found, code).tolist()
        self.count(min(count, len(self.data) - self.place))  # each has a byte at least
        return [self.value(element, key, depth + 1) for _ in range(count)]

    def count(self, values: int) -> None:
        """Bound what becomes objects of Python, which are several times larger."""
        self.values += values
        if self.values > _MOST_VALUES:
            raise ValueError(f"its metadata has more than {_MOST_VALUES:,} values")

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text("a tensor's name")
        dimensions = self.number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise ValueError(
                f"tensor {name} has {dimensions} dimensions, and at most {_MOST_DIMENSIONS} are "
                "read"
            )
        shape = tuple(self.number("Q") for _ in range(dimensions))
        return name, shape[::-1], self.number("I"), self.number("Q")

    def tensors(
        self, described: list[tuple[str, tuple[int, ...], int, int]], start: int, alignment: int
    ) -> dict[str, Tensor]:
        end, made, sizes = 0, {}, {}
        for name, shape, number, offset in described:
            kind = _kind(name, number)
            block, block_bytes = GGML_QUANT_SIZES[kind]
            if not shape or 0 in shape or shape[-1] % block:
                raise ValueError(f"tensor {name} has shape {list(shape)} in {kind.name}")
            if name in sizes:
                raise ValueError(f"it has tensor {name} twice")
            if offset != end:
                raise ValueError(f"tensor {name} lies at {offset}, and {end} was expected")
            row = shape[-1] // block * block_bytes
            sizes[name] = (kind, row, start + offset, row * int(np.prod(shape[:-1], dtype=object)))
            end = -(-(offset + sizes[name][3]) // alignment) * alignment
        last = max((place + size for _, _, place, size in sizes.values()), default=0)
        if last > len(self.data):
            missing = last - len(self.data)
            raise _CutOffError(f"{missing:,} of its {last:,} bytes are missing at its end")
        for name, shape, _, _ in described:
            kind, row, place, size = sizes[name]
            stored = np.frombuffer(self.data[place : place + size], np.uint8)
            stored = stored.reshape(*shape[:-1], row)
            if kind in PLAIN:
                stored = stored.view(PLAIN[kind])
            made[name] = Tensor(name, shape, kind, stored)
        return made


def _kind(name: str, number: int) -> Kind:
    known = {int(kind): kind for kind in Kind}
    kind = known.get(number)
    if kind not in TENSOR_TYPES:
        what = f"of type {number}, which is not known" if kind is None else f"{kind.name}"
        names = ", ".join(kind.name for kind in TENSOR_TYPES)
        raise ValueError(f"tensor {name} is {what}: have {names}")
    return kind
