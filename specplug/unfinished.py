"""Files and folders that are still being written, under hidden names of their own.

Each is locked by the process that writes it, so that what a killed one left can be told from what
a running one writes: process ids cannot tell, since in a container every process may be number 1.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform != "win32":
    import fcntl

OLD = "-old"
"""How the name of a folder ends that was moved away for its successor."""
_MARK = ".partial-"
_TRIES = 100


@contextmanager
def unfinished(final: Path, *, folder: bool = False, suffix: str = "") -> Iterator[Path]:
    """Give a new place beside ``final`` to write to; the caller renames it when it is whole.

    What is still at that place when the block ends is removed. What killed writers of the same
    ``final`` left is removed before; what running ones write is not touched.

    Args:
        final: where the result is to be.
        folder: whether the place is a folder, made empty, instead of an empty file.
        suffix: how the name of the place ends, for writers that look at it.
    """
    clear_abandoned(final)
    place, lock = _new_place(final, folder=folder, suffix=suffix)
    try:
        yield place
    finally:
        _remove(place)
        os.close(lock)


def clear_abandoned(final: Path) -> None:
    """Remove what killed writers of ``final`` left beside it.

    A folder that was moved away for a successor that did not come gets its name back.
    """
    left = [path for path in final.parent.iterdir() if path.name.startswith(_prefix(final))]
    for path in sorted(left, key=lambda path: not path.name.endswith(OLD)):
        owner = path.with_name(path.name.removesuffix(OLD))
        if not owner.exists():  # its writer has renamed it: the successor came
            _remove(path)
            continue
        lock = _lock(owner)
        if lock is None:
            continue
        try:
            if path.name.endswith(OLD):
                put_back(path, final)
            _remove(path)
        finally:
            os.close(lock)


def put_back(old: Path, final: Path) -> None:
    """Give a folder that was moved away its name back, if nobody else has it now."""
    try:
        if not final.exists():
            old.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):
            raise


def _prefix(final: Path) -> str:
    return f".{final.name}{_MARK}"


def _new_place(final: Path, *, folder: bool, suffix: str) -> tuple[Path, int]:
    """An empty file or folder that nobody else has, and the open descriptor that locks it."""
    for _ in range(_TRIES):
        place = final.with_name(f"{_prefix(final)}{secrets.token_hex(4)}{suffix}")
        try:
            if folder:
                place.mkdir()
            else:
                os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
            descriptor = os.open(place, os.O_RDONLY)
        except (FileExistsError, FileNotFoundError):  # the latter: removed as a leftover just now
            continue
        if _locked(descriptor) is not False and _is_at(descriptor, place):
            return place, descriptor
        os.close(descriptor)
    raise FileExistsError(f"no free name beside {final}: delete {_prefix(final)}* there")


def _is_at(descriptor: int, place: Path) -> bool:
    """Whether the open file still has its name."""
    try:
        return os.path.samestat(os.fstat(descriptor), place.stat())
    except FileNotFoundError:
        return False


def _lock(place: Path) -> int | None:
    """A descriptor that locks a leftover; None: its writer runs, or that cannot be told."""
    try:
        descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None
    if _locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _locked(descriptor: int) -> bool | None:
    """Lock an open file; False: another one has it; None: there are no locks on this disk."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:  # somebody else's: its name is in nobody's way
        return
