"""Files of a checkpoint folder: which hold its weights, and whether each is what its name says.

Nothing of a folder is run, and no file is taken for another: what a folder's index, or
``model.safetensors``, does not name is not part of the checkpoint, as in transformers.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError, safe_open

from specplug.types import ExportError

_MOST_HEADER = 1 << 24  # bytes; each tensor that is read has it parsed again
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
FILES = {
    CONFIG: "the architecture and its sizes",
    WEIGHTS: "the weights; where it exists, no index is read",
    INDEX: "which file holds which tensor; only the files that it names are read",
}
"""What is read of a folder, beside the files that its index names and those of a tokenizer."""
TOKENIZER_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)
"""What :mod:`specplug.export.tokenizer_folder` reads, looked at before anything is."""
REFUSED_FILES = {
    "adapter_config.json": "merge the adapter into its model (PEFT's merge_and_unload) and give "
    "the folder of the merged model",
    "quantize_config.json": "its keys belong into config.json as quantization_config: save the "
    "checkpoint anew with a current version of the library that made it",
    "quant_config.json": "its keys belong into config.json as quantization_config: save the "
    "checkpoint anew with a current version of the library that made it",
    "hf_quant_config.json": "NVIDIA ModelOpt's formats are not read: give the checkpoint that was "
    "quantized, in 16 or 32 bits",
}
"""Files that change what the weights mean, with the remedy; the last three only where config.json
has no quantization_config."""
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAY_BE_EMPTY = ("merges.txt",)


def check_folder(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a folder whose files are not what they are called, or that holds another format.

    Args:
        folder: of the checkpoint.
        config: its config.json.

    Raises:
        ExportError: naming the file and the remedy.
    """
    check_files(folder)
    for name, remedy in REFUSED_FILES.items():
        quantized = config.get("quantization_config") is not None
        if (folder / name).is_file() and not (quantized and name != "adapter_config.json"):
            raise ExportError(f"{folder} has a {name}: {remedy}")


def check_files(folder: Path) -> None:
    """Refuse files of a folder that are Git LFS pointers, empty, or JSON by their name only.

    Raises:
        ExportError: naming the file and the remedy.
    """
    for name in (*FILES, *TOKENIZER_FILES):
        if (folder / name).is_file():
            check_file(folder / name)


def check_file(path: Path) -> None:
    """Refuse a file that is a Git LFS pointer, that is empty, or that is JSON by its name only.

    Raises:
        ExportError: naming the file and the remedy.
    """
    check_content(path)
    if path.suffix == ".json":
        read_json(path)


def check_content(path: Path) -> None:
    """Refuse a file that is empty, or a Git LFS pointer in place of the file itself.

    Raises:
        ExportError: naming the file and the remedy.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    if start == _POINTER:
        raise ExportError(
            f"{path} is a Git LFS pointer, not the file: run `git lfs pull` in its folder"
        )
    if not start and path.name not in _MAY_BE_EMPTY:
        raise ExportError(f"{path} is empty: download it again")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ExportError: the file is a Git LFS pointer, or holds something else than a JSON object.
    """
    check_content(path)
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON ({error}): download it again") from error
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(found, dict):
        raise ExportError(
            f"{path} holds a JSON {type(found).__name__}, not an object: download it again"
        )
    return found


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The files that a folder's weights are in, by its index or as ``model.safetensors``.

    Raises:
        ExportError: there are none, or one that the index names is missing.
    """
    if (folder / WEIGHTS).is_file():
        return (folder / WEIGHTS,)
    if not (folder / INDEX).is_file():
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        if others:
            raise ExportError(
                f"{folder} has neither {WEIGHTS} nor {INDEX}, which say what belongs to the model: "
                f"add the index of {', '.join(others[:3])}, or call a single file {WEIGHTS}"
            )
        raise ExportError(
            f"{folder} holds no {WEIGHTS}; pickled weights (.bin) are not read, since "
            "loading them runs their code: convert them with transformers' save_pretrained"
        )
    names = sorted(set(read_index(folder).values()))
    for name in names:
        if not (folder / name).is_file():
            raise ExportError(
                f"{folder / name} is missing, and {INDEX} names it: download it, or run "
                "`git lfs pull`"
            )
    return tuple(folder / name for name in names)


def read_index(folder: Path) -> dict[str, str]:
    """By tensor name the file that a folder's index puts it into.

    Raises:
        ExportError: it is no index, or names files outside the folder.
    """
    found = read_json(folder / INDEX).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ExportError(f"{folder / INDEX} has no weight_map: download it again")
    for tensor, name in found.items():
        if not isinstance(name, str) or not _inside(name):
            raise ExportError(
                f"{folder / INDEX} puts {tensor} into {name!r}: only .safetensors files of its own "
                "folder are read"
            )
    return found


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    escapes = path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
    return path.suffix == ".safetensors" and not escapes


def check_index(
    where: Path | str, index: Mapping[str, str] | None, held: Mapping[str, Collection[str]]
) -> None:
    """Refuse weights that are not where the index says, or in two files.

    Args:
        where: the folder, for errors.
        index: by tensor name its file; None where a single file has them all.
        held: by file the names of its tensors.

    Raises:
        ExportError: naming a tensor and its files.
    """
    places: dict[str, str] = {}
    for name, tensors in held.items():
        for tensor in tensors:
            if tensor in places:
                raise ExportError(
                    f"{where}: {tensor} is in {places[tensor]} and in {name}: only one file of a "
                    "checkpoint may hold it"
                )
            places[tensor] = name
    if index is None:
        return
    for tensor in sorted(index.keys() | places.keys()):
        said, found = index.get(tensor), places.get(tensor)
        if said != found:
            raise ExportError(
                f"{where}: {tensor} is in {found or 'none of the files'}, and {INDEX} puts it into "
                f"{said or 'none of them'}: download the index and the files again, together"
            )


def check_weights(folder: Path) -> tuple[Path, ...]:
    """The files of :func:`weight_files`, each one whole, with the tensors that the index names.

    Raises:
        ExportError: naming the file or the tensor.
    """
    files = weight_files(folder)
    held = {}
    for path in files:
        check_content(path)
        _check_header(path)
        with readable(path), safe_open(path, framework="pt") as file:
            held[path.relative_to(folder).as_posix()] = list(file.keys())
    check_index(folder, None if files[0].name == WEIGHTS else read_index(folder), held)
    return files


def _check_header(path: Path) -> None:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if size > _MOST_HEADER:
        raise ExportError(
            f"{path} announces a header of {size:,} bytes, and at most {_MOST_HEADER:,} are read, "
            "for 100,000 tensors: download it again"
        )


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Say of a safetensors file that cannot be read how large it is, and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        size = path.stat().st_size if path.exists() else 0
        raise ExportError(
            f"{path} ({size} bytes) is truncated or is no safetensors file ({error}): download it "
            "again"
        ) from error
