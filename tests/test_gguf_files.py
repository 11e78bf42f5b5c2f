"""Files named .gguf that are cut off, damaged, of another format, version or byte order."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import ExportError
from specplug.export.gguf_file import PLAIN, TENSOR_TYPES, read_gguf
from specplug.export.source import open_source
from tests_support.llama import write_file
from tests_support.llama_models import write_model


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.gguf"
    write_model(path, "llama")
    return path


def test_it_reads_what_the_gguf_package_reads(whole: Path) -> None:
    found, theirs = read_gguf(whole), gguf.GGUFReader(whole)
    own = {name: value for name, value in theirs.fields.items() if not name.startswith("GGUF.")}
    assert found.metadata == {name: field.contents() for name, field in own.items()}
    assert list(found.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(found.tensors[tensor.name].stored, tensor.data)


@settings(max_examples=60, database=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off_says_so(share: float, whole: Path) -> None:
    data = whole.read_bytes()
    cut = whole.with_name("cut.gguf")
    size = int(share * len(data))
    cut.write_bytes(data[:size])
    with pytest.raises(ExportError) as raised:
        open_source(cut)
    message = str(raised.value)
    if size < 4:
        assert "is empty" in message or "is no GGUF file" in message
        return
    assert message.startswith("cut.gguf is cut off: ")
    assert message.endswith(": download it again")
    if "are missing" in message:
        assert f"{len(data) - size:,} of its {len(data):,} bytes are missing at its end" in message


@pytest.mark.parametrize(
    ("begins", "message"),
    [
        (b"", "is empty: download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:1",
            "is a Git LFS pointer, .*pull",
        ),
        (b"<!doctype html><html>", "is a web page"),
        (b"\n <HTML>", "is a web page"),
        (b"PK\x03\x04 and a model", "is a zip file, as PyTorch writes"),
        (b"lmgg\x01", "GGML file of before GGUF"),
        (b"tjgg\x03\x00", "GGML file of before GGUF"),
        (b"\x08\x00\x00\x00\x00\x00\x00\x00{}", "is no GGUF file: it begins with b'"),
        (b"GGUF\x01\x00\x00\x00" + bytes(64), "it is of version 1, and 2 and 3 are read"),
        (b"GGUF\x09\x00\x00\x00" + bytes(64), "it is of version 9"),
        (b"GGUF\x00\x00\x00\x03" + bytes(64), "of another byte order"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 64, "its header announces a part of"),
    ],
)
def test_another_format_is_named(begins: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(begins)
    with pytest.raises(ExportError, match=rf"^m\.gguf .*{message}"):
        open_source(tmp_path / "m.gguf")


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def header(keys: list[bytes], tensors: list[bytes]) -> bytes:
    start = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    return start + b"".join(keys) + b"".join(tensors)


def number(key: str, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


def tensor(name: str, kind: int = 0, offset: int = 0, shape: tuple[int, ...] = (4, 2)) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (header([number("a.b", 1), number("a.b", 1)], []), "it has a.b twice"),
        (header([text("a.b") + struct.pack("<I", 77)], []), "a.b is of type 77"),
        (header([text("a.b") + struct.pack("<IQ", 8, 1) + b"\xff"], []), "a.b is not UTF-8"),
        (header([number("general.alignment", 24)], []), "general.alignment is 24"),
        (header([], [tensor("t"), tensor("t", offset=32)]), "it has tensor t twice"),
        (header([], [tensor("t", offset=64)]), "tensor t lies at 64, and 0 was expected"),
        (header([], [tensor("t"), tensor("u", offset=16)]), "tensor u lies at 16, and 32"),
        (
            header([], [tensor("t", kind=99)]),
            "tensor t is of type 99, which is not known: have",
        ),
        (header([], [tensor("t", kind=28)]), "tensor t is F64: have F32"),
        (header([], [tensor("t", kind=2)]), r"tensor t has shape \[2, 4\] in Q4_0"),
        (header([], [tensor("t", shape=(4, 0))]), r"tensor t has shape \[0, 4\]"),
        (
            header([text("a.b") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 10_000], []),
            "a.b has more than 8 arrays within one another",
        ),
        (
            header([text("a.b") + struct.pack("<IIQ", 9, 0, 1 << 23) + bytes(1 << 23)], []),
            "its metadata has more than 4,194,304 values",
        ),
        (
            header([], [tensor("t", shape=(1,) * 100_000)]),
            "tensor t has 100000 dimensions, and at most 4 are read",
        ),
    ],
)
def test_damage_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(data + bytes(256))
    with pytest.raises(ExportError, match=rf"^m\.gguf cannot be read as GGUF: {message}"):
        read_gguf(tmp_path / "m.gguf")


@settings(max_examples=100, database=None)
@given(place=st.integers(4, 2000), value=st.integers(0, 255))
def test_a_damaged_header_raises_nothing_else(place: int, value: int, whole: Path) -> None:
    data = bytearray(whole.read_bytes())
    data[place] = value
    broken = whole.with_name("broken.gguf")
    broken.write_bytes(data)
    with suppress(ExportError):  # or it is read: a letter of a name was another
        read_gguf(broken)


@pytest.mark.parametrize("alignment", [8, 32, 256])
def test_alignments(alignment: int, tmp_path: Path) -> None:
    rows = np.arange(12, dtype=np.float32).reshape(3, 4)
    keys = {"general.alignment": alignment}
    writer: Callable[..., None] = write_file
    writer(tmp_path / "m.gguf", keys, {"a": rows, "b": rows + 1})
    found = read_gguf(tmp_path / "m.gguf").tensors
    np.testing.assert_array_equal(found["b"].rows(slice(1, 3)), rows[1:] + 1)


def test_every_type_of_tensor_that_is_listed_is_dequantized() -> None:
    for kind in TENSOR_TYPES:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        stored = np.zeros((2, size), np.uint8)
        if kind in PLAIN:
            stored = stored.view(PLAIN[kind])
        assert gguf.dequantize(stored, kind).shape == (2, block)
