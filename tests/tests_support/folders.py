"""Checkpoint folders, taken apart."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from specplug.export.folders import INDEX, WEIGHTS


def shard(folder: Path) -> tuple[str, str]:
    """Split the weights into two files and an index; their names."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    places = {tensor: names[index % 2] for index, tensor in enumerate(sorted(tensors))}
    for name in names:
        held = {tensor: value for tensor, value in tensors.items() if places[tensor] == name}
        save_file(held, folder / name, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return names


def swapped(folder: Path) -> None:
    names = shard(folder)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    places["model.norm.weight"] = names[places["model.norm.weight"] == names[0]]
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
