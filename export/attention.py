"""What the source's attention is, layer by layer: how far it looks back, how it scales and rotates.

Asked of transformers' own code rather than read off the configuration: rotary scaling rules are
many, and a wrong one shows only at positions that no quick check reaches.
"""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers

from specplug.types import ExportError, Float32Array


@dataclass(frozen=True, slots=True, eq=False)
class Rotary:
    """Cosines and sines by position; ``2 * R`` values of a head are rotated, the rest stay."""

    cos: Float32Array  # f32[positions, R]
    sin: Float32Array  # f32[positions, R]
    interleaved: bool
    """Whether a rotated pair is two neighbours rather than a value of each half."""


@dataclass(frozen=True, slots=True)
class LayerAttention:
    """The attention of one layer."""

    window: int | None
    """How many tokens it sees, its own included; None: all before it."""
    scale: float | None
    """Of the products of queries and keys; None: as mobius has it."""
    rotary: Rotary | None
    """None: positions come in elsewhere, or not at all."""


def positions(config: Any) -> int:
    """How many positions one rotary table is good for."""
    longest = int(config.max_position_embeddings)
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = parameters.values() if "rope_type" not in parameters else (parameters,)
    for kind in kinds:
        if isinstance(kind, dict) and kind.get("rope_type") == "longrope":
            # Beyond it another table applies to all positions, those already cached included.
            original = kind.get("original_max_position_embeddings")
            longest = min(longest, int(original or config.original_max_position_embeddings))
    return longest


def max_entries(config: Any) -> int:
    """Cache entries that a row can hold: a padded attention row takes one position more."""
    return positions(config) - 1


def read_attention(config: Any) -> list[LayerAttention]:
    """The attention of every layer of a transformers configuration.

    Raises:
        ExportError: a kind of layer that GroupQueryAttention cannot express.
    """
    count = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"] * count
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise ExportError(
            f"{config.model_type}'s layers of kind {', '.join(unknown)} are not supported: "
            "only full and sliding-window attention are"
        )
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation="eager", trust_remote_code=False
        )
    scales = {
        module.layer_idx: float(module.scaling)
        for module in model.modules()
        if hasattr(module, "layer_idx") and isinstance(getattr(module, "scaling", None), float)
    }
    tables = {kind: _read_rotary(config, model, kind) for kind in set(kinds)}
    return [
        LayerAttention(
            window=window if kind == "sliding_attention" else None,
            scale=scales.get(layer),
            rotary=tables[kind] if _rotates(config, layer, kind) else None,
        )
        for layer, kind in enumerate(kinds)
    ]


def _rotates(config: Any, layer: int, kind: str) -> bool:
    if config.model_type in ("cohere2", "exaone4") and config.sliding_window is not None:
        return kind == "sliding_attention"
    return bool(config.no_rope_layers[layer]) if hasattr(config, "no_rope_layers") else True


def _read_rotary(config: Any, model: Any, kind: str) -> Rotary | None:
    classes = {type(m) for m in model.modules() if type(m).__name__.endswith("RotaryEmbedding")}
    if not classes:
        return None
    module = classes.pop()(config=config)
    parameters = inspect.signature(module.forward).parameters
    layer = {"layer_type": kind} if "layer_type" in parameters else {}
    with torch.inference_mode():
        cos, sin = module(torch.zeros(1), torch.arange(positions(config))[None], **layer)
        interleaved = _is_interleaved(model, cos, sin)
    width = cos.shape[-1] // 2
    halves = torch.equal(cos[..., :width], cos[..., width:])
    columns = slice(0, width) if halves else slice(0, None, 2)
    return Rotary(_table(cos, columns), _table(sin, columns), interleaved)


def _table(values: Any, columns: slice) -> Float32Array:
    table: Float32Array = np.ascontiguousarray(values[0, :, columns].numpy())
    return table


def _is_interleaved(model: Any, cos: Any, sin: Any) -> bool:
    """Rotate the first unit vector with the model's own function, and see where it goes."""
    rotate = getattr(sys.modules[type(model).__module__], "apply_rotary_pos_emb", None)
    if rotate is None:
        return False
    unit = torch.zeros(1, 1, 2, cos.shape[-1])
    unit[..., 0] = 1
    rotated, _ = rotate(unit, unit, cos[:, :2], sin[:, :2])
    return int(rotated[0, 0, 1, 1:].abs().argmax()) == 0
