"""Tensors of a checkpoint that are no weights of the exported model, by name; all others are read.

A tensor that nobody reads is usually a part of the model that would be missing: a scale, a head, a
bias that the configuration does not tell of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from specplug.types import ExportError

HARMLESS: dict[str, tuple[str, str]] = {
    r"rotary_emb\.inv_freq": ("", "follow from the configuration, and are computed from it"),
    r"position_ids": ("", "the numbers from 0 on, in old checkpoints"),
    r"attn\.(bias|masked_bias)": ("gpt2", "the causal mask, in old checkpoints"),
    r"attention\.(bias|masked_bias)": ("gpt_neox", "the causal mask, in old checkpoints"),
}
"""By pattern of the end of a name: the only family that has it so ("": all), and what it is."""
NOTED: dict[str, str] = {
    r"mtp\.": "multi-token prediction heads, which transformers does not load either: they draft, "
    "and do not change what the model says",
}
"""By pattern of the beginning of a name: tensors that are left out, of which the user is told."""

_Tensor = TypeVar("_Tensor")


def without_harmless(
    config: Any, stored: Mapping[str, _Tensor]
) -> tuple[dict[str, _Tensor], tuple[str, ...]]:
    """A checkpoint's tensors without those that are no weights.

    Returns:
        The rest, and the names of which the user is to be told.
    """
    ends = [
        pattern for pattern, (family, _) in HARMLESS.items() if family in ("", config.model_type)
    ]
    silent = re.compile(rf"(^|\.)({'|'.join(ends)})$")
    told = re.compile("|".join(NOTED))
    kept = {
        name: tensor
        for name, tensor in stored.items()
        if not silent.search(name) and not told.match(name)
    }
    return kept, tuple(sorted(name for name in stored if told.match(name)))


def check_unread(source: str, model_type: str, unread: Sequence[str]) -> None:
    """Refuse a checkpoint with tensors that the transformers model has no place for.

    Raises:
        ExportError: naming some of them.
    """
    if not unread:
        return
    names = ", ".join(unread[:3]) + (f" and {len(unread) - 3} more" if len(unread) > 3 else "")
    raise ExportError(
        f"{source} holds tensors that {model_type} has no place for: {names}; "
        "the configuration is another model's, or does not tell of them, and without them the "
        "model would be another one"
    )
