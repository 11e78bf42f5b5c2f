"""Rotary positions of a GGUF file, as transformers' parameters of the rotation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from specplug.export.gguf_file import Tensor

FREQUENCIES = "rope_freqs.weight"
"""The tensor by whose values llama.cpp divides the frequencies of Llama 3."""

# factor, low_freq_factor, high_freq_factor: what Llama 3.1 and 3.2 were published with.
_LLAMA3 = [(factor, 1.0, 4.0) for factor in (8.0, 32.0, 16.0, 4.0, 2.0, 64.0)]


def rope_parameters(
    metadata: Mapping[str, Any],
    architecture: str,
    shape: Mapping[str, Any],
    frequencies: Tensor | None,
) -> dict[str, Any]:
    """The rotation as transformers' configurations write it.

    Args:
        metadata: of the file.
        architecture: its ``general.architecture``.
        shape: ``context`` and ``head`` (lengths), and ``base`` of the rotation.
        frequencies: f32[head / 2], what the frequencies are divided by.

    Raises:
        ValueError: a scaling that transformers cannot express for the family.
    """
    rope = f"{architecture}.rope."
    kind = metadata.get(rope + "scaling.type", "linear")
    factor = metadata.get(rope + "scaling.factor", metadata.get(rope + "scale_linear", 0)) or 1
    original = metadata.get(rope + "scaling.original_context_length") or shape["context"]
    attention = metadata.get(rope + "scaling.attn_factor", 1)
    if kind not in ("none", "linear", "yarn"):
        raise ValueError(f"{rope}scaling.type {kind!r} is not supported: have none, linear, yarn")
    if kind != "yarn" and attention != 1:
        raise ValueError(f"{rope}scaling.attn_factor {attention:g} is supported with yarn only")
    made: dict[str, Any] = {"rope_type": "default", "rope_theta": shape["base"]}
    if kind == "linear" and factor != 1:
        made.update(rope_type="linear", factor=factor)
    elif kind == "yarn":
        made.update(
            rope_type="yarn",
            factor=float(factor),
            original_max_position_embeddings=original,
            attention_factor=attention * (1 + 0.1 * math.log(factor)),
        )
    if frequencies is None:
        return made
    if made["rope_type"] != "default":
        raise ValueError(f"tensor {FREQUENCIES} beside a scaling of type {kind} is not supported")
    divisors = frequencies.rows(slice(None)).reshape(-1)
    return {**made, **_llama3(divisors, shape, original)}


def _llama3(divisors: Any, shape: Mapping[str, Any], original: int) -> dict[str, Any]:
    """The parameters of Llama 3's scaling that give these divisors."""
    if len(divisors) != shape["head"] // 2:
        raise ValueError(f"tensor {FREQUENCIES} has {len(divisors)} values for {shape['head']} / 2")
    if np.all(divisors == 1):
        return {}
    lengths = 2 * math.pi * shape["base"] ** (np.arange(0, shape["head"], 2) / shape["head"])
    for factor, low, high in _LLAMA3:
        for before in (8192, original, 4096, 2048, 16384, 32768, 65536, 131072):
            smooth = (before / lengths - low) / (high - low)
            between = 1 / ((1 - smooth) / factor + smooth)
            expected = np.where(
                lengths < before / high, 1, np.where(lengths > before / low, factor, between)
            )
            if np.allclose(divisors, expected, rtol=1e-5, atol=0):
                return {
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low,
                    "high_freq_factor": high,
                    "original_max_position_embeddings": before,
                }
    raise ValueError(f"tensor {FREQUENCIES} holds divisors that no scaling of Llama 3 gives")
