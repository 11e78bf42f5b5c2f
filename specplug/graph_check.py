"""What an ``.onnx`` file refers to, read without the onnx package: operator domains and data files.

ONNX Runtime would find out most of it by itself, but only by loading the file; a bundle is checked
before anything of it reaches a backend. The walk visits only the messages it has to (ONNX's
``onnx.proto`` has the field numbers), skips weights by their length, and is bounded in depth.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from specplug.bundle_paths import file_size, is_inside
from specplug.types import BundleError

DOMAINS = frozenset({"", "ai.onnx", "com.microsoft", "specplug"})
"""Operators that ONNX Runtime itself has, and ours, which graphs define as functions of them; any
other would need code from elsewhere."""

_DEEPEST = 32  # graphs inside attributes of nodes of graphs…
_MOST_FIELDS = 5_000_000  # some seconds' worth; a graph of a thousand nodes has thirty thousand
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # protobuf's wire types

Message = memoryview


@dataclass(slots=True)
class References:
    """What a graph refers to."""

    domains: set[str] = field(default_factory=set)
    external: list[dict[str, str]] = field(default_factory=list)
    """Per tensor kept elsewhere: ``location``, and perhaps ``offset`` and ``length``."""
    fields: int = 0
    """Read so far."""


def check_graph(graph: Path) -> None:
    """Refuse a graph that needs foreign operators, or data outside its own folder.

    Raises:
        BundleError: naming the domain or the location.
    """
    try:
        found = read_references(graph)
    except (ValueError, IndexError, UnicodeDecodeError) as error:
        raise BundleError(f"{graph.name} is not a readable ONNX graph: {error}") from error
    foreign = sorted(found.domains - DOMAINS)
    if foreign:
        raise BundleError(
            f"{graph.name} has operators of the domain {foreign[0]!r}: only ONNX's own, "
            "com.microsoft's and ours are run"
        )
    sizes: dict[str, int] = {}
    for entry in found.external:
        location = entry.get("location", "")
        if location not in sizes:
            sizes[location] = _size_inside(graph, location)
        _check_extent(graph, entry, sizes[location])


def _size_inside(graph: Path, location: str) -> int:
    pure = PurePosixPath(location)
    path = graph.parent / location
    if (
        not location
        or "\0" in location
        or pure.is_absolute()
        or len(pure.parts) != 1
        or pure.name == ".."
        or not is_inside(path, graph.parent)
    ):
        raise BundleError(f"{graph.name} keeps weights in {location!r}, outside its own folder")
    size = file_size(path)
    if size is None:
        raise BundleError(f"{graph.name} keeps weights in {location!r}, which is missing")
    return size


def _check_extent(graph: Path, entry: dict[str, str], size: int) -> None:
    try:
        offset, length = int(entry.get("offset", "0")), int(entry.get("length", "0"))
    except ValueError as error:
        raise BundleError(f"{graph.name} has external data without numbers: {error}") from error
    if offset < 0 or length < 0 or offset + length > size:
        raise BundleError(
            f"{graph.name} wants bytes {offset} to {offset + length} of "
            f"{entry.get('location')!r}, which has {size}"
        )


def read_references(graph: Path) -> References:
    """Walk a graph file.

    Raises:
        ValueError: not protobuf, truncated, or nested too deeply.
    """
    found = References()
    with graph.open("rb") as stream:
        if not graph.stat().st_size:
            raise ValueError("the file is empty")
        # Not closed by hand: pieces of it may live on in an exception's frames.
        _model(memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)), found)
    return found


def _fields(message: Message, found: References) -> Iterator[tuple[int, Message | None]]:
    """Field number and, of length-delimited fields, the content."""
    position, end = 0, len(message)
    while position < end:
        found.fields += 1
        if found.fields > _MOST_FIELDS:
            raise ValueError(f"it has more than {_MOST_FIELDS} fields")
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        content = None
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            length, position = _varint(message, position)
            content = message[position : position + length]
            position += length
        elif kind in (_FIXED64, _FIXED32):
            position += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {kind} at byte {position}")
        if number == 0 or position > end:
            raise ValueError("a field is cut short")
        yield number, content


def _varint(message: Message, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"a number without end at byte {position}")


def _text(content: Message | None) -> str:
    return bytes(content or b"").decode("utf-8")


Visit = Callable[[Message, References, int], None]


def _walk(message: Message, found: References, depth: int, visits: dict[int, Visit]) -> None:
    if depth > _DEEPEST:
        raise ValueError(f"more than {_DEEPEST} graphs inside one another")
    for number, content in _fields(message, found):
        if number in visits and content is not None:
            visits[number](content, found, depth)


def _model(message: Message, found: References) -> None:
    _walk(message, found, 0, {7: _graph, 8: _opset, 20: _training, 25: _function})


def _opset(message: Message, found: References, depth: int) -> None:
    found.domains.update(_text(text) for number, text in _fields(message, found) if number == 1)


def _training(message: Message, found: References, depth: int) -> None:
    _walk(message, found, depth + 1, {1: _graph, 2: _graph})


def _function(message: Message, found: References, depth: int) -> None:
    _walk(message, found, depth + 1, {7: _node, 9: _opset, 11: _attribute})
    found.domains.update(_text(text) for number, text in _fields(message, found) if number == 10)


def _graph(message: Message, found: References, depth: int) -> None:
    _walk(message, found, depth + 1, {1: _node, 5: _tensor, 15: _sparse})


def _node(message: Message, found: References, depth: int) -> None:
    found.domains.update(_text(text) for number, text in _fields(message, found) if number == 7)
    _walk(message, found, depth, {5: _attribute})


def _attribute(message: Message, found: References, depth: int) -> None:
    visits: dict[int, Visit] = {5: _tensor, 6: _graph, 10: _tensor, 11: _graph}
    _walk(message, found, depth, visits | {22: _sparse, 23: _sparse})


def _sparse(message: Message, found: References, depth: int) -> None:
    _walk(message, found, depth, {1: _tensor, 2: _tensor})


def _tensor(message: Message, found: References, depth: int) -> None:
    entry: dict[str, str] = {}
    for number, content in _fields(message, found):
        if number == 13 and content is not None:
            pair = dict(_fields(content, found))
            entry[_text(pair.get(1))] = _text(pair.get(2))
    if entry:
        found.external.append(entry)
