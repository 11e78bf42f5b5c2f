"""What a user names as a checkpoint, looked at without reading it."""

from __future__ import annotations

import re
from pathlib import Path

from specplug.bundle import MANIFEST
from specplug.types import ExportError

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")


def is_hub_id(source: str) -> bool:
    """Whether a source that is no file or folder reads as ``org/name`` or ``org/name@revision``."""
    return HUB_ID.fullmatch(source) is not None


def is_gguf(path: Path) -> bool:
    """Whether a path is a GGUF file, by its name or by what it begins with."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def check_checkpoint(path: Path) -> None:
    """Refuse what no reader of checkpoints takes: a quick look before anything long.

    Raises:
        ExportError: nothing is there, or neither a GGUF file nor a folder with a configuration.
    """
    if (path / MANIFEST).is_file():
        raise ExportError(
            f"{path} is a bundle, which was exported already: give the checkpoint that it was "
            "made of"
        )
    check_exists(path)
    if path.exists() and not is_gguf(path) and not (path / "config.json").is_file():
        raise ExportError(
            f"{path} is neither a .gguf file nor a folder with a config.json{_hint(path)}"
        )


def _hint(path: Path) -> str:
    """What the path seems to be instead, and what to give."""
    if (path / "adapter_config.json").is_file():
        return (
            ", but an adapter: merge it into its model (PEFT's merge_and_unload) and give the "
            "folder of the merged model"
        )
    if path.is_dir():
        files = sorted(file.name for file in path.glob("*.gguf"))
        return f": give one of its files, have {', '.join(files[:3])}" if files else ""
    return f": give its folder, {path.parent}" if (path.parent / "config.json").is_file() else ""


def check_exists(path: Path) -> None:
    """Refuse a path where nothing is, unless it may be an id of the Hub.

    Raises:
        ExportError: naming what can be given.
    """
    if not path.exists() and not is_hub_id(str(path)):
        raise ExportError(
            f"{path} does not exist: give a .gguf file, a Hugging Face folder, or a Hub id "
            "(org/name or org/name@revision)"
        )


def check_gguf(path: Path) -> None:
    """Refuse any other kind of source.

    Raises:
        ExportError: not a GGUF file.
    """
    if not is_gguf(path):
        raise ExportError(
            f"--precision gguf keeps the quantization of a GGUF file, and {path.name} is none: "
            "choose another precision"
        )
