"""A model repository for Triton: the configuration, ``model.py`` and the bundle itself."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specplug.batching import DEFAULT_BATCH
from specplug.bundle import Bundle, Manifest
from specplug.option_values import whole
from specplug.staging import check_place, staged
from specplug.types import ExportError

CONFIG = "config.pbtxt"
VERSION = "1"
BUNDLE = "bundle"
"""Folder of the bundle in the version's, and the parameter that may name another."""

INPUTS: Mapping[str, tuple[str, int]] = {
    "text_input": ("TYPE_STRING", 1),
    "messages": ("TYPE_STRING", 1),
    "input_ids": ("TYPE_INT64", -1),
    "sampling_parameters": ("TYPE_STRING", 1),
    "stream": ("TYPE_BOOL", 1),
}
"""Type and length of each; all may be left out, but for one of the first three."""

OUTPUTS: Mapping[str, tuple[str, int]] = {
    "text_output": ("TYPE_STRING", 1),
    "token_ids": ("TYPE_INT64", -1),
    "finish_reason": ("TYPE_STRING", 1),
    "statistics": ("TYPE_STRING", 1),
}

SETTINGS: Mapping[str, Any] = {
    BUNDLE: BUNDLE,
    "max_batch": DEFAULT_BATCH,
    "max_waiting": 256,
    "drafter": "auto",
    "draft_tokens": "auto",
    "threads": None,
}
"""Parameters of the configuration, and what they are where they are left out or empty."""


def read_settings(parameters: Mapping[str, str]) -> dict[str, Any]:
    """The settings that a configuration's parameters ask for.

    Args:
        parameters: by name; those in capitals are the Python backend's own.

    Raises:
        ValueError: a parameter is unknown, or its value is not of its kind.
    """
    found = dict(SETTINGS)
    for name, value in parameters.items():
        if name.isupper():
            continue
        if name not in SETTINGS:
            raise ValueError(f"parameter {name!r} is not known: have {', '.join(SETTINGS)}")
        if not value:
            continue
        counted = name in ("max_batch", "max_waiting", "threads")
        counted = counted or (name == "draft_tokens" and value != "auto")
        found[name] = whole(name, value) if counted else value
    return found


_MODEL = '''\
"""Triton loads this file; what it does is in the installed specplug package."""

from specplug.integrations.triton.backend import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''


def check_repository(bundle: Path, repository: Path, *, force: bool = False) -> None:
    """Refuse what :func:`write_repository` cannot do, also before there is a bundle.

    Args:
        bundle: gives the model its name.
        repository: the folder of all models.
        force: a model of that name may be replaced.

    Raises:
        ExportError: the place is taken, or the name is none for a model.
    """
    name = _name(bundle)
    if not re.fullmatch(r"[\w-][\w.-]*", name, re.ASCII):
        raise ExportError(
            f"{name!r} cannot be a Triton model's name: rename the bundle, with letters, digits, "
            "'.', '_' and '-' alone"
        )
    if repository.exists():
        check_place(repository.absolute() / name, replace=force, known_by=CONFIG)
    elif not repository.absolute().parent.is_dir():
        raise ExportError(f"{repository.absolute().parent} is not a folder: make it first")


def write_repository(bundle: Path, repository: Path, *, force: bool = False) -> Path:
    """Write a model with a copy of the bundle; whole or not at all.

    Args:
        bundle: its name without ``.bundle`` is the model's.
        repository: the folder of all models; made if it is not there.
        force: replace a model of that name.

    Returns:
        The model's folder.

    Raises:
        BundleError: ``bundle`` is none, or damaged.
        ExportError: as in :func:`check_repository`, or the disk is full.
    """
    check_repository(bundle, repository, force=force)
    manifest = Bundle.open(bundle).manifest
    name = _name(bundle)
    made = not repository.exists()
    repository.mkdir(exist_ok=True)
    final = repository / name
    try:
        with staged(final, replace=force, known_by=CONFIG) as stage:
            version = stage / VERSION
            version.mkdir()
            shutil.copytree(bundle, version / BUNDLE, copy_function=shutil.copyfile)
            (version / "model.py").write_text(_MODEL)
            (stage / CONFIG).write_text(configuration(name, manifest))
            Bundle.open(version / BUNDLE)
    finally:
        if made:
            with contextlib.suppress(OSError):  # it is not empty: all went well
                repository.rmdir()
    return final


def configuration(name: str, manifest: Manifest) -> str:
    """The text of ``config.pbtxt`` for a bundle."""
    rows = min([DEFAULT_BATCH, *(plan.max_batch for plan in manifest.target.plans)])
    parameters = {
        BUNDLE: BUNDLE,
        "max_batch": str(rows),
        "drafter": "auto",
        "draft_tokens": "auto",
        "threads": "",
        "max_waiting": "256",
    }
    lines = [
        "# Written by specplug export --triton. Requests share batches inside the model, so",
        "# max_batch_size stays 0: it would tell Triton to stack inputs of one shape.",
        f"name: {json.dumps(name)}",
        'backend: "python"',
        "max_batch_size: 0",
        "model_transaction_policy { decoupled: true }",
        *(_tensors("input", INPUTS, " optional: true")),
        *(_tensors("output", OUTPUTS, "")),
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        "# bundle: a folder, from this version's on. max_batch: answers at a time.",
        "# drafter, draft_tokens: as in specplug generate. threads: empty for one a core.",
        "# max_waiting: requests beyond those that run; more are refused.",
        *(
            f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
            for key, value in parameters.items()
        ),
    ]
    return "\n".join(lines) + "\n"


def _tensors(kind: str, tensors: Mapping[str, tuple[str, int]], more: str) -> list[str]:
    return [
        f"{kind} {{ name: {json.dumps(name)} data_type: {data_type} dims: [ {length} ]{more} }}"
        for name, (data_type, length) in tensors.items()
    ]


def _name(bundle: Path) -> str:
    return bundle.absolute().name.removesuffix(".bundle")
