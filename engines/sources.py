"""Where a component's source is, for engines that run the source itself.

A bundle names its source by the SHA-256 of each file. An engine reads those files and no others,
through descriptors that were opened before the content was compared: renaming another file into
their place changes nothing. Who can write into a file while it is read can still change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from specplug.bundle_paths import check_inside
from specplug.checkpoint_path import is_hub_id
from specplug.types import EngineError
from specplug.weights import default_folder

if TYPE_CHECKING:
    from specplug.bundle import Provenance

_COMMIT = re.compile(r"[0-9a-f]{40}")
_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_KINDS = (".safetensors", ".gguf")


class _OtherFileError(EngineError):
    """A file is missing, or is not the one that the manifest names."""


def find_source(provenance: Provenance, given: Sequence[Path]) -> Path:
    """The checkpoint whose files are those that the provenance names, by SHA-256.

    Args:
        provenance: of the component.
        given: checkpoints to look at first; then come the models that ``specplug pull`` fetched,
            and the Hub, from which the files are downloaded at the commit that is named.

    Returns:
        A path, or ``org/name@commit`` of what is in the Hub's cache.

    Raises:
        EngineError: none of them is it, or the manifest does not say by SHA-256 what it is.
    """
    with ExitStack() as held:
        place, _ = _find(provenance, given, held)
    return place


@contextmanager
def verified_source(provenance: Provenance, given: Sequence[Path]) -> Iterator[Path]:
    """A place that holds the source's files, compared with their SHA-256, and nothing else.

    Args:
        provenance: as for :func:`find_source`, like the next.
        given: see there.

    Yields:
        A GGUF file, or a folder with a configuration and safetensors files; valid in the block.

    Raises:
        EngineError: as :func:`find_source` does.
    """
    for name in provenance.sha256:
        if "/" in name or not (name in (_CONFIG, _INDEX) or name.endswith(_KINDS)):
            raise EngineError(
                f"the manifest names {name!r} among the files of its source: only {_CONFIG}, "
                "safetensors and GGUF files are read here; use the component's own engine"
            )
    with ExitStack() as held:
        place, files = _find(provenance, given, held)
        root = held.enter_context(TemporaryDirectory(prefix="specplug-source-"))
        folder = Path(root) / re.sub(r"[^\w.-]", "_", place.stem if place.is_file() else place.name)
        folder.mkdir()
        for name, descriptor in files.items():
            (folder / name).symlink_to(_path_of(descriptor, place, name))
        whole, *others = files
        if whole.endswith(".gguf") and not others:
            yield folder / whole
        else:
            _write_index(folder, files)
            yield folder


def _find(
    provenance: Provenance, given: Sequence[Path], held: ExitStack
) -> tuple[Path, dict[str, int]]:
    """The place, and by name the open descriptors of its files, which ``held`` closes."""
    _check_names(provenance)
    for place in (*given, default_folder() / provenance.source):
        try:
            return place, _open_files(place, provenance, held)
        except _OtherFileError:
            continue
    if provenance.revision and is_hub_id(provenance.source):
        return _from_hub(provenance, held)
    looked = ", ".join(map(str, given)) or "the models that specplug pull fetched"
    raise EngineError(
        f"the source {provenance.source!r} of this component is not among {looked}: "
        "name it with --source"
    )


def _from_hub(provenance: Provenance, held: ExitStack) -> tuple[Path, dict[str, int]]:
    source, revision = provenance.source, str(provenance.revision)
    if not _COMMIT.fullmatch(revision):
        raise EngineError(
            f"the source {source!r} is named at the revision {revision!r}, which is no commit of "
            "40 hexadecimal digits, so it may change: export the model again"
        )
    from specplug.export.hub import fetch_snapshot

    name = f"{source}@{revision}"
    folder, _ = fetch_snapshot(name)
    try:
        return Path(name), _open_files(folder, provenance, held)
    except _OtherFileError as error:
        raise EngineError(f"the source {name} is not what was exported: {error}") from error


def _check_names(provenance: Provenance) -> None:
    """Refuse a manifest that does not say which files its source has, or names no plain files."""
    if not provenance.sha256:
        raise EngineError(
            f"the manifest has no SHA-256 of the source {provenance.source!r}, so nothing tells "
            "whether a checkpoint is it: export the model again"
        )
    source = Path(provenance.source)
    if source.is_absolute() or ".." in source.parts or "\0" in provenance.source:
        raise EngineError(
            f"the manifest names the source {provenance.source!r}, which is no name of a model: "
            "export the model again"
        )
    for name in provenance.sha256:
        try:
            check_inside(name)
        except ValueError as error:
            raise EngineError(f"the manifest's files of the source: {error}") from error


def _open_files(place: Path, provenance: Provenance, held: ExitStack) -> dict[str, int]:
    """The descriptors of all files, if every one is what the manifest says."""
    with ExitStack() as opened:
        files = {}
        for name, digest in provenance.sha256.items():
            path = place if place.is_file() and place.name == name else place / name
            files[name] = _open_file(path, digest, opened)
        held.push(opened.pop_all())
    return files


def _open_file(path: Path, digest: str, opened: ExitStack) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        opened.callback(os.close, descriptor)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise _OtherFileError(f"{path} is no file")
        with open(descriptor, "rb", closefd=False) as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _OtherFileError(f"{path} cannot be read: {error.strerror or error}") from error
    if found != digest:
        raise _OtherFileError(f"{path} has the SHA-256 {found}, not {digest}")
    return descriptor


def _path_of(descriptor: int, place: Path, name: str) -> Path:
    """Another name of an open file, which no renaming changes, where the system has such."""
    if sys.platform == "linux":
        return Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    return (place if place.is_file() else place / name).absolute()


def _write_index(folder: Path, files: dict[str, int]) -> None:
    """Say which file holds which tensor, as the files do: the source's own index is not read."""
    shards = [name for name in files if name.endswith(".safetensors")]
    if _WEIGHTS in shards or not shards or _INDEX in files:
        return
    from safetensors import SafetensorError, safe_open

    index: dict[str, str] = {}
    for name in shards:
        try:
            with safe_open(folder / name, framework="np") as file:
                index |= dict.fromkeys(file.keys(), name)
        except SafetensorError as error:
            raise EngineError(f"{name} of the source is no safetensors file: {error}") from error
    (folder / _INDEX).write_text(json.dumps({"weight_map": index}))
