"""Heads for tiny targets that the speculators library wrote, and what any head should say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specplug.export.head import Head
from specplug.types import EngineSpec, Scores, Step

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


class Fed:
    """A head whose states follow from its tokens, so that it may be run as a model is."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._table = np.random.default_rng(0).normal(size=(300, 192)).astype(np.float32)

    @property
    def spec(self) -> EngineSpec:
        spec: EngineSpec = self._engine.spec
        return spec

    def forward(self, step: Step) -> Scores:
        scores: Scores = self._engine.forward(
            replace(step, states={"features": self._table[step.tokens]})
        )
        return scores

    def save(self, row: int, start: int, stop: int) -> Any:
        return self._engine.save(row, start, stop)

    def load(self, row: int, start: int, entries: Any) -> None:
        self._engine.load(row, start, entries)

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        self._engine.keep(row, past, nodes)

    def clear(self, row: int, start: int) -> None:
        self._engine.clear(row, start)

    def close(self) -> None:
        self._engine.close()
