"""Paths that a manifest may name, plain, relative and the same on every system; what lies there."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable
from pathlib import Path

_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", *(f"{name}{i}" for name in ("com", "lpt") for i in range(1, 10))]
)
"""Names that Windows takes for devices, whatever suffix follows."""


def check_inside(path: str) -> str:
    """Refuse a path that leaves its folder, or that another system reads otherwise.

    Returns:
        The path.

    Raises:
        ValueError: naming the path.
    """
    if not all(map(_is_plain, path.split("/"))):
        raise ValueError(f"{path!r} is not a relative path inside the bundle")
    return path


def _is_plain(part: str) -> bool:
    """Whether a part of a path is the name of a file or folder, and nothing else."""
    return (
        part not in ("", ".", "..")
        and not any(char in '\\:*?"<>|' or ord(char) < 32 or ord(char) == 127 for char in part)
        and part[-1] not in ". "
        and part.partition(".")[0].rstrip().lower() not in _DEVICES
    )


def check_distinct(paths: Iterable[str]) -> None:
    """Refuse two paths that differ in case only: on some systems they are one file.

    Raises:
        ValueError: naming the second.
    """
    known: dict[str, str] = {}
    for path in paths:
        other = known.setdefault(path.casefold(), path)
        if other != path:
            raise ValueError(f"{path!r} and {other!r} are one file where case does not count")


def is_inside(path: Path, folder: Path) -> bool:
    """Whether a path, its links followed, lies in a folder."""
    try:
        return path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long
        return False


def file_size(path: Path) -> int | None:
    """Bytes of a file, its links followed; None: there is none of that name."""
    try:
        found = path.stat()
    except OSError:  # a name that is too long is nobody's, either
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
