"""Checkpoints from the Hugging Face Hub: one snapshot, pinned to its commit."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from specplug.checkpoint_path import HUB_ID
from specplug.export.tokenizer_folder import UNREADABLE, VOCABULARIES
from specplug.types import ExportError

_TEXTS = ("*.json", "*.jinja", *VOCABULARIES, *UNREADABLE)  # the last, to be refused by name
_WEIGHTS = ("*.safetensors",)  # nothing pickled, no code


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
        folder = snapshot_download(repo, revision=revision, allow_patterns=[*_TEXTS, *_WEIGHTS])
    return Path(folder), Path(folder).name


@dataclass(frozen=True, slots=True)
class Preview:
    """What is known of a repository before its weights are here."""

    folder: Path
    """Of the Hub's cache, named by the commit: configuration and tokenizer."""
    shapes: dict[str, list[int]]
    """Of the tensors, by name."""
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
        weights = snapshot_download(
            repo, revision=revision, allow_patterns=list(_WEIGHTS), dry_run=True
        )
        missing = [file for file in weights if file.will_download]
        if not missing:
            return None
        commit = missing[0].commit_hash
        folder = snapshot_download(repo, revision=commit, allow_patterns=list(_TEXTS))
        found = HfApi().get_safetensors_metadata(repo, revision=commit).files_metadata.values()
    return Preview(
        folder=Path(folder),
        shapes={name: t.shape for file in found for name, t in file.tensors.items()},
        download_bytes=sum(file.file_size or 0 for file in missing),
    )


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
