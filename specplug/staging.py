"""A folder that appears whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from specplug.bundle import MANIFEST, Manifest, write_manifest
from specplug.types import ExportError
from specplug.unfinished import OLD, clear_abandoned, put_back, unfinished

HEAD = "config.json"
"""What a folder with a head is known by."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, None)  # numpy's own errors have no number
_TRIES = 20  # renames that somebody else may come between


def check_place(final: Path, *, replace: bool, known_by: str = MANIFEST) -> None:
    """Refuse a place where :func:`staged` cannot put its result.

    Raises:
        ExportError: ``final`` exists and ``replace`` is false, or it has no file ``known_by``.
    """
    if final.exists() and not replace:
        raise ExportError(f"{final} exists: choose another name, or replace it with --force")
    # More than once: another export may replace it between the two looks.
    if all(final.exists() and not (final / known_by).is_file() for _ in range(_TRIES)):
        kind = "no bundle" if known_by == MANIFEST else f"without {known_by}"
        raise ExportError(f"{final} exists and is {kind}: it is not replaced")
    check_writable(final.parent)


def check_writable(folder: Path) -> None:
    """Refuse a folder that nothing can be written into.

    Raises:
        ExportError: naming it.
    """
    if not folder.is_dir():
        raise ExportError(f"{folder} is not a folder: make it first")
    try:
        Path(tempfile.mkdtemp(prefix=".specplug-", dir=folder)).rmdir()
    except OSError as error:
        raise ExportError(
            f"{folder} cannot be written to ({error.strerror}): choose another folder"
        ) from error


@contextmanager
def staged(final: Path, *, replace: bool, known_by: str = MANIFEST) -> Iterator[Path]:
    """Give a folder to write into, and rename it to ``final`` when the block ends well.

    On any error nothing is left. After a kill a hidden folder may be left beside ``final``; the
    next call for the same place removes it, or gives it its name back if it is what was being
    replaced. Several calls for the same place at once do not disturb one another.

    Args:
        final: where the result is to be.
        replace: put it in the place of an existing one, which stays whole until then.
        known_by: the file, relative to it, that an existing one must have to be replaced.

    Raises:
        ExportError: ``final`` exists and ``replace`` is false, or it has no file ``known_by``; or
            the disk is full.
    """
    final = final.absolute()
    clear_abandoned(final)
    check_place(final, replace=replace, known_by=known_by)
    with unfinished(final, folder=True) as stage:
        try:
            yield stage
            _sync(stage)
            _put(stage, final, replace=replace, known_by=known_by)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            raise ExportError(
                f"{final} cannot be written: {error.strerror or error} (the disk had "
                f"{shutil.disk_usage(final.parent).free / 1e6:.0f} MB free when it stopped); "
                "nothing is left of it: make room, or choose another disk (--plan says what is "
                "needed)"
            ) from error


def _put(stage: Path, final: Path, *, replace: bool, known_by: str) -> None:
    """Rename a finished folder; of several that finish at once the last one stays."""
    old = stage.with_name(f"{stage.name}{OLD}")
    try:
        for _ in range(_TRIES):
            if final.exists():
                check_place(final, replace=replace, known_by=known_by)
                shutil.rmtree(old, ignore_errors=True)
                with suppress(FileNotFoundError):  # another one moved it away just now
                    final.rename(old)
            try:
                stage.rename(final)
                return
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
        raise ExportError(f"{final} is replaced by others all the time: choose another name")
    except BaseException:
        put_back(old, final)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def replace_manifest(folder: Path, manifest: Manifest) -> None:
    """Put a manifest in the place of a bundle's own: a reader finds the old one or the new one.

    The files of both have to be there, under names that are not each other's.
    """
    with unfinished(folder / MANIFEST) as part:
        write_manifest(folder, manifest, part.name)
        _sync(folder)
        part.replace(folder / MANIFEST)
    _sync(folder)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written beside its place, and put there once it is on the disk.

    Args:
        path: the file's.
        write: writes it under another name with the same suffix.
    """
    with unfinished(path, suffix=path.suffix) as part:
        write(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)


def _sync(folder: Path) -> None:
    """Bring the files to disk before the name says that they are there."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
