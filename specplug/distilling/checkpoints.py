"""Where an interrupted training goes on: one file, replaced whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from specplug.distilling.acceptance import Acceptance
from specplug.distilling.optimizer import HeadOptimizer
from specplug.staging import replace_file
from specplug.types import SpecplugError

_FILE = "checkpoint.pt"


@dataclass(slots=True)
class State:
    """What training changes, besides the head and the optimizer."""

    step: int = 0
    """Steps done."""
    seconds: float = 0.0
    best: Acceptance | None = None
    best_step: int = 0
    waited: int = 0
    """Evaluations since the best."""
    best_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    losses: tuple[float, ...] = ()
    """Of the steps since the last report."""


class Checkpoints:
    """The checkpoint of one training.

    Args:
        folder: of the training.
        plan: whatever the weights depend on; a checkpoint of another plan is refused.
    """

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        self._path = folder / _FILE
        encoded = json.dumps(plan, sort_keys=True).encode()
        self._plan = hashlib.sha256(encoded).hexdigest()

    def save(
        self, state: State, weights: Mapping[str, torch.Tensor], optimizer: HeadOptimizer
    ) -> None:
        """Replace the checkpoint."""
        best = state.best and (state.best.tried, state.best.accepted)
        content = {
            "plan": self._plan,
            "state": {name: getattr(state, name) for name in State.__slots__} | {"best": best},
            "weights": dict(weights),
            "optimizer": optimizer.state_dict(),
        }
        replace_file(self._path, lambda part: torch.save(content, part))

    def load(self, weights: Mapping[str, torch.Tensor], optimizer: HeadOptimizer) -> State:
        """Put weights and optimizer where the checkpoint has them; the beginning if there is none.

        Raises:
            SpecplugError: it is of another training, or cannot be read.
        """
        if not self._path.exists():
            return State()
        try:
            found = torch.load(self._path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
            raise SpecplugError(
                f"{self._path} is no checkpoint that can be read: delete it to train anew"
            ) from error
        if found["plan"] != self._plan:
            raise SpecplugError(
                f"{self._path} is of a training with other texts or options: give these, another "
                "folder, or delete it to train anew"
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(found["weights"][name])
        optimizer.load_state_dict(found["optimizer"])
        state = State(**found["state"])
        state.best = state.best and Acceptance(*state.best)  # type: ignore[misc]
        return state
