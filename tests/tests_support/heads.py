"""Heads for tiny targets: those that the speculators library wrote, and one trained on the spot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from specplug.export.head import Head
from specplug.export.source import Source, open_source
from specplug.export.speculators import open_head

WRITTEN = Path(__file__).parents[1] / "data" / "speculators"
NAMES = ("llama", "llama-normed", "qwen3")
LAYERS = 3
"""Of the tiny target that they are for."""


def copy_head(folder: Path, name: str = "llama", **changed: Any) -> Path:
    """A head of the library's, with some of its configuration changed: keys like ``a.b``."""
    shutil.copytree(WRITTEN / name, folder)
    config = json.loads((folder / "config.json").read_text())
    for key, value in changed.items():
        *path, last = key.split("__")
        place = config
        for part in path:
            place = place[part]
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def save(folder: Path, head: Head, like: Path, vocabulary: torch.Tensor | None = None) -> Path:
    """Write a head as the library does, with the configuration of another one."""
    shape = head.shape
    config = json.loads((like / "config.json").read_text())
    config["draft_vocab_size"] = shape.vocab_size
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {name: w.detach().clone() for name, w in head.state_dict().items()}
    if vocabulary is not None:
        tensors["d2t"] = vocabulary - torch.arange(len(vocabulary))
        tensors["t2d"] = torch.zeros(shape.input_vocab_size, dtype=torch.bool)
        tensors["t2d"][vocabulary] = True
    save_file(tensors, folder / "model.safetensors")
    return folder


def own_text(model: Any, prompt: list[int], count: int) -> list[int]:
    """What a model says greedily after a prompt, prompt included."""
    tokens = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(count):
            following = model(tokens).logits[:, -1].argmax(-1, keepdim=True)
            tokens = torch.cat([tokens, following], dim=1)
    return [int(token) for token in tokens[0]]


def features_of(model: Any, tokens: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    """What some layers of a model read, f32[1, T, n * D]."""
    with torch.no_grad():
        states = model(torch.tensor([tokens]), output_hidden_states=True).hidden_states
    return torch.cat([states[layer] for layer in layers], dim=-1)


def train(folder: Path, source: Source, prompts: list[list[int]], steps: int = 120) -> Path:
    """A head that knows a target's answers to some prompts by heart, own steps included."""
    torch.manual_seed(0)
    opened = open_head(WRITTEN / "llama-normed", source)
    head = Head(opened.head.shape)
    model = open_source(source.path).reference()
    texts = torch.tensor([own_text(model, prompt, 60) for prompt in prompts])
    features = torch.cat([features_of(model, t, head.shape.layers) for t in texts.tolist()])
    length = texts.shape[1]
    optimizer = torch.optim.Adam(head.parameters(), lr=4e-3)
    for _ in range(steps):
        hidden = head.fuse(features[:, : length - 3])
        loss, past, mask = torch.zeros(()), None, None
        for ahead in (1, 2):
            tokens = texts[:, ahead : length - 3 + ahead]
            positions = torch.arange(length - 3) + ahead - 1
            logits, hidden, past = head(tokens, hidden, positions[None], mask, past)
            wanted = texts[:, ahead + 1 : length - 2 + ahead]
            loss = loss + functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            # The next step sees the target's entries up to its own, and itself.
            seen = torch.ones(length - 3, length - 3).tril().bool()
            mask = torch.zeros(1, 1, length - 3, 2 * (length - 3))
            mask.masked_fill_(~torch.cat([seen, torch.eye(length - 3).bool()], 1), -torch.inf)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return save(folder, head, WRITTEN / "llama-normed")


def expected_logits(
    head: Head, features: torch.Tensor, tokens: np.ndarray[Any, Any], drafted: list[int]
) -> np.ndarray[Any, Any]:
    """A head's logits after a context and drafted tokens, computed anew."""
    end = len(tokens) - 1
    given = torch.from_numpy(tokens[1:])[None]
    with torch.no_grad():
        logits, hidden, past = head(given, head.fuse(features[:, :end]), torch.arange(end)[None])
        for depth, token in enumerate(drafted):
            logits, hidden, past = head(
                torch.tensor([[token]]), hidden[:, -1:], torch.tensor([[end + depth]]), past=past
            )
    found: np.ndarray[Any, Any] = logits[0, -1].numpy()
    return found
