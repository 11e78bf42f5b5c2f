"""What moves the weights: Muon the matrices inside, AdamW the output rows and the norms."""

from __future__ import annotations

from typing import Any

import torch

from specplug.distilling.options import TrainingOptions
from specplug.export.head import Head

_BETAS = 0.9, 0.95
_MOMENTUM = 0.95


class HeadOptimizer:
    """All weights of a head but the embedding, which is the target's.

    A matrix's step has singular values that are alike (Muon, https://kellerjordan.github.io/posts/muon)
    and the size that AdamW's would have, so one learning rate is for both. Output rows are of words
    that are rare and frequent, and norms are no matrices: they are AdamW's; norms do not decay.

    Args:
        head: whose weights are moved.
        options: of the training.
    """

    def __init__(self, head: Head, options: TrainingOptions) -> None:
        weights = [(n, w) for n, w in head.named_parameters() if w.requires_grad]
        output = [w for n, w in weights if w.ndim > 1 and n.startswith("lm_head")]
        inside = [w for n, w in weights if w.ndim > 1 and not n.startswith("lm_head")]
        groups = [
            {"params": output, "weight_decay": options.weight_decay},
            {"params": [w for _, w in weights if w.ndim == 1], "weight_decay": 0.0},
        ]
        rate = options.learning_rate
        self._parts = (
            torch.optim.AdamW(groups, lr=rate, betas=_BETAS, fused=True),
            torch.optim.Muon(
                inside,
                lr=rate,
                weight_decay=options.weight_decay,
                momentum=_MOMENTUM,
                adjust_lr_fn="match_rms_adamw",
            ),
        )

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part in self._parts:
            part.zero_grad()

    def step(self, rate: float) -> None:
        """Move the weights, at a learning rate."""
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = rate
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {type(part).__name__: part.state_dict() for part in self._parts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        for part in self._parts:
            part.load_state_dict(state[type(part).__name__])
