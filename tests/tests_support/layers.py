"""Tiny checkpoints some of whose layers do nothing, and how their drafts are judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors.torch

from tests_support.tiny import write_checkpoint

_OUTPUTS = ("self_attn.o_proj.weight", "mlp.down_proj.weight")


def idle_checkpoint(folder: Path, layers: int, idle: tuple[int, ...], **config: Any) -> Path:
    """A random Llama in which these layers add nothing to what they read."""
    write_checkpoint(folder, num_hidden_layers=layers, **config)
    file = folder / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    for layer in idle:
        for output in _OUTPUTS:
            weights[f"model.layers.{layer}.{output}"].zero_()
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    return folder
