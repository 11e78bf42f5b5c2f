"""Checkpoints from the Hugging Face Hub: one snapshot, pinned to its commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home

import torch
from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    NotASafetensorsRepoError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    SafetensorsParsingError,
)

from specplug.checkpoint_path import HUB_ID
from specplug.export.folders import INDEX, WEIGHTS, check_index, read_index
from specplug.export.tokenizer_folder import UNREADABLE, VOCABULARIES
from specplug.types import ExportError

_TEXTS = ("*.json", "*.jinja", *VOCABULARIES, *UNREADABLE)  # the last, to be refused by name
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64,
    "BOOL": torch.bool,
}  # fmt: skip
"""By its name in safetensors' header."""


def fetch_snapshot(source: str) -> tuple[Path, str]:
    """Download what an export needs of a repository; an interrupted download is resumed.

    Args:
        source: ``org/name`` or ``org/name@revision`` (a branch, a tag or a commit).

    Returns:
        The folder in the Hub's cache, and the commit.

    Raises:
        ExportError: no such repository or revision, no permission, or no network.
    """
    repo, revision = _parse(source)
    with _told(repo, revision):
        texts = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_TEXTS)))
        # Of the same commit: the branch may move on in between.
        snapshot_download(repo, revision=texts.name, allow_patterns=_weights(texts))
    return texts, texts.name


def _weights(folder: Path) -> list[str]:
    """The weights that belong to a snapshot; others that lie beside them are not downloaded."""
    return [WEIGHTS, *(set(read_index(folder).values()) if (folder / INDEX).is_file() else ())]


@dataclass(frozen=True, slots=True)
class Preview:
    """What is known of a repository before its weights are here."""

    folder: Path
    """Of the Hub's cache, named by the commit: configuration and tokenizer."""
    tensors: dict[str, tuple[torch.dtype, tuple[int, ...]]]
    """By name the type and the shape."""
    download_bytes: int


def preview_snapshot(source: str) -> Preview | None:
    """Fetch the small files of a repository and its tensors' names and shapes.

    Args:
        source: as for :func:`fetch_snapshot`.

    Returns:
        None if the weights are in the cache, or the Hub is not to be asked.

    Raises:
        ExportError: as for :func:`fetch_snapshot`.
    """
    repo, revision = _parse(source)
    if constants.is_offline_mode():
        return None
    with _told(repo, revision):
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(_TEXTS)))
        commit = folder.name
        weights = snapshot_download(
            repo, revision=commit, allow_patterns=_weights(folder), dry_run=True
        )
        missing = [file for file in weights if file.will_download]
        if not missing:
            return None
        try:
            found = HfApi().get_safetensors_metadata(repo, revision=commit)
        except (NotASafetensorsRepoError, SafetensorsParsingError) as error:
            raise ExportError(f"{repo}: its weights cannot be read: {error}") from error
    held = found.files_metadata
    check_index(repo, found.weight_map if found.sharded else None, {
        name: file.tensors for name, file in held.items()
    })  # fmt: skip
    return Preview(
        folder=folder,
        tensors={
            name: (_dtype(repo, name, tensor.dtype), tuple(tensor.shape))
            for file in held.values()
            for name, tensor in file.tensors.items()
        },
        download_bytes=sum(file.file_size or 0 for file in missing),
    )


def _dtype(repo: str, tensor: str, name: str) -> torch.dtype:
    if name not in _DTYPES:
        raise ExportError(f"{repo}: {tensor} is stored as {name}, which is not read")
    return _DTYPES[name]


def _parse(source: str) -> tuple[str, str | None]:
    match = HUB_ID.fullmatch(source)
    if match is None:
        raise ExportError(f"{source!r} is no Hub id: give org/name or org/name@revision")
    return match["repo"], match["revision"]


@contextmanager
def _told(repo: str, revision: str | None) -> Iterator[None]:
    """Say what the Hub's errors mean, and what to do."""
    try:
        yield
    except GatedRepoError as error:
        raise ExportError(
            f"{repo} is gated: accept its conditions on the Hub, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ExportError(f"{repo} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ExportError(
            f"{repo} is neither a file or folder here nor a repository of the Hub (a private one "
            "needs `hf auth login`)"
        ) from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise ExportError(
            f"{repo} is not in the cache and the Hub cannot be reached: check the network, unset "
            "HF_HUB_OFFLINE, or give a local folder"
        ) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ExportError(
            f"{repo} could not be downloaded: {error}; run it again to resume"
        ) from error
