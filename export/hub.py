"""Checkpoints from the Hugging Face Hub: one snapshot, pinned to its commit."""

from __future__ import annotations

import os
import re
from pathlib import Path

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # nothing phones home

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from specplug.types import ExportError

_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_FILES = ("*.json", "*.safetensors", "*.jinja")  # weights as data; nothing pickled, no code


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder reads as ``org/name`` or ``org/name@revision``."""
    return _ID.fullmatch(source) is not None


def fetch_snapshot(source: str) -> tuple[Path, str]:
    """Download what an export needs of a repository; an interrupted download is resumed.

    Args:
        source: ``org/name`` or ``org/name@revision`` (a branch, a tag or a commit).

    Returns:
        The folder in the Hub's cache, and the commit.

    Raises:
        ExportError: no such repository or revision, no permission, or no network.
    """
    match = _ID.fullmatch(source)
    if match is None:
        raise ExportError(f"{source!r} is no Hub id: give org/name or org/name@revision")
    repo, revision = match["repo"], match["revision"]
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(_FILES))
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
    return Path(folder), Path(folder).name
