"""Whether a bundle's files are those that its manifest names."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from specplug.bundle_paths import is_inside
from specplug.types import BundleError

if TYPE_CHECKING:
    from specplug.bundle import File


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_file(folder: Path, file: File) -> None:
    """Compare a file's size and SHA-256 with the manifest's.

    Raises:
        BundleError: it is missing, outside the folder, or another.
    """
    path = folder / file.path
    if not is_inside(path, folder):
        raise BundleError(f"{file.path} points outside the bundle: not opened")
    try:
        found = path.stat()
    except OSError:  # a name that is too long is missing, too
        found = None
    if found is None or not stat.S_ISREG(found.st_mode):
        raise BundleError(f"{file.path} is missing from {folder}: export the model again")
    size = found.st_size
    if size != file.bytes:
        raise BundleError(f"{file.path} has {size} bytes, the manifest says {file.bytes}")
    digest = file_sha256(path)
    if digest != file.sha256:
        raise BundleError(f"{file.path} was changed: its SHA-256 is {digest}, not {file.sha256}")
