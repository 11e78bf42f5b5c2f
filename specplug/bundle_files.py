"""The files of a bundle: what its manifest says of each, and whether it is true."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, field_validator

from specplug.bundle_paths import check_inside, file_sha256, file_size, is_inside
from specplug.types import BundleError

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Part(BaseModel):
    """A part of a manifest: its fields and no others, of exactly their types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class File(Part):
    """A file of the bundle."""

    path: str
    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256

    @field_validator("path")
    @classmethod
    def _inside(cls, path: str) -> str:
        return check_inside(path)


def describe_file(folder: Path, name: str) -> File:
    """The manifest's entry for a file that lies at ``folder / name``."""
    path = folder / name
    return File(path=name, bytes=path.stat().st_size, sha256=file_sha256(path))


def check_file(folder: Path, file: File) -> None:
    """Compare a file's size and SHA-256 with the manifest's.

    Raises:
        BundleError: it is missing, outside the folder, or another.
    """
    path = folder / file.path
    if not is_inside(path, folder):
        raise BundleError(f"{file.path} points outside the bundle: not opened")
    size = file_size(path)
    if size is None:
        raise BundleError(f"{file.path} is missing from {folder}: export the model again")
    if size != file.bytes:
        raise BundleError(f"{file.path} has {size} bytes, the manifest says {file.bytes}")
    digest = file_sha256(path)
    if digest != file.sha256:
        raise BundleError(f"{file.path} was changed: its SHA-256 is {digest}, not {file.sha256}")
