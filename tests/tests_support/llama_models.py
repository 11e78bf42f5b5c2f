"""Tiny random GGUF models of every architecture that is read, with metadata that matters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests_support.llama import write_file

VOCABULARY = 40
HIDDEN, HEADS, KV_HEADS, LAYERS, FORWARD, CONTEXT = 64, 4, 2, 2, 96, 512
TOKENS = [(7 * n * n + 3 * n + 1) % VOCABULARY for n in range(40)]
EVERY = 4  # of the positions whose logits are kept

_ALL = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
_QKV = _ALL[:3]


def llama3_divisors(
    head: int, base: float, factor: float, low: float, high: float, original: int
) -> list[float]:
    """What llama.cpp's converter writes into rope_freqs.weight for Llama 3's scaling."""
    made = []
    for pair in range(0, head, 2):
        length = 2 * math.pi * base ** (pair / head)
        if length < original / high:
            made.append(1.0)
        elif length > original / low:
            made.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            made.append(1 / ((1 - smooth) / factor + smooth))
    return made


MODELS: dict[str, dict[str, Any]] = {
    "llama": {"arch": "llama"},
    "llama, tied": {"arch": "llama", "tied": True},
    "llama, wide heads": {
        "arch": "llama",
        "head": 32,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "rope.dimension_count": 32,
    },
    "llama, all heads": {"arch": "llama", "kv": HEADS, "rope.freq_base": 500000.0},
    "llama, base and epsilon": {
        "arch": "llama",
        "rope.freq_base": 1000.0,
        "attention.layer_norm_rms_epsilon": 0.01,
    },
    "llama, scale_linear": {"arch": "llama", "rope.scale_linear": 4.0},
    "llama, factor without a type": {"arch": "llama", "rope.scaling.factor": 4.0},
    "llama, two factors": {"arch": "llama", "rope.scaling.factor": 2.0, "rope.scale_linear": 4.0},
    "llama, no scaling": {
        "arch": "llama",
        "rope.scaling.type": "none",
        "rope.scaling.factor": 4.0,
    },
    "llama, linear": {"arch": "llama", "rope.scaling.type": "linear", "rope.scaling.factor": 2.5},
    "llama, yarn": {
        "arch": "llama",
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 128,
    },
    "llama, yarn and an attention factor": {
        "arch": "llama",
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 8.0,
        "rope.scaling.attn_factor": 0.75,
    },
    "llama 3": {
        "arch": "llama",
        "rope.freq_base": 500000.0,
        "frequencies": llama3_divisors(16, 500000.0, 8.0, 1.0, 4.0, 8192),
    },
    "llama 3.2": {
        "arch": "llama",
        "head": 32,
        "attention.key_length": 32,
        "attention.value_length": 32,
        "rope.freq_base": 500000.0,
        "frequencies": llama3_divisors(32, 500000.0, 32.0, 1.0, 4.0, 8192),
    },
    "llama, biases of q, k, v": {"arch": "llama", "biases": _QKV},
    "llama, all biases": {"arch": "llama", "biases": _ALL},
    "llama, one bias": {"arch": "llama", "biases": ("ffn_down",)},
    "mistral": {
        "arch": "llama",
        "rope.freq_base": 1000000.0,
        "attention.sliding_window": 4096,
        "attention.scale": 0.25,
        "logit_scale": 1.0,
    },
    "llama, arrays": {
        "arch": "llama",
        "attention.head_count": [HEADS] * LAYERS,
        "attention.head_count_kv": [KV_HEADS] * LAYERS,
        "feed_forward_length": [FORWARD] * LAYERS,
        "expert_count": 0,
        "attention.causal": True,
    },
    "qwen2": {"arch": "qwen2", "biases": _QKV},
    "qwen2, no biases": {"arch": "qwen2", "tied": True},
    "qwen2, yarn": {
        "arch": "qwen2",
        "biases": _QKV,
        "rope.freq_base": 1000000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 64,
    },
    "qwen3": {
        "arch": "qwen3",
        "norms": True,
        "head": 32,
        "attention.key_length": 32,
        "attention.value_length": 32,
    },
    "qwen3, linear, biases": {
        "arch": "qwen3",
        "norms": True,
        "biases": _QKV,
        "rope.scaling.factor": 3.0,
        "tied": True,
    },
}
"""By name: keys under the architecture's name, and what the tensors are to be."""

_OWN = ("arch", "tied", "head", "kv", "biases", "frequencies", "norms")


def model_keys(name: str) -> dict[str, Any]:
    """The metadata of a model."""
    model = MODELS[name]
    arch = model["arch"]
    keys: dict[str, Any] = {
        "general.architecture": arch,
        f"{arch}.context_length": CONTEXT,
        f"{arch}.embedding_length": HIDDEN,
        f"{arch}.block_count": LAYERS,
        f"{arch}.feed_forward_length": FORWARD,
        f"{arch}.attention.head_count": HEADS,
        f"{arch}.attention.head_count_kv": model.get("kv", KV_HEADS),
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-5,
    }
    keys |= {f"{arch}.{key}": value for key, value in model.items() if key not in _OWN}
    letters = [chr(ord("!") + n) for n in range(VOCABULARY - 2)]
    return keys | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, '!"', "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * (VOCABULARY - 1) + [3],
        "tokenizer.ggml.merges": ['! "'],
        "tokenizer.ggml.eos_token_id": VOCABULARY - 1,
    }


def write_model(
    path: Path,
    name: str,
    *,
    keys: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write one of the models, its weights random and the same each time.

    Args:
        path: of the file.
        name: of the model.
        keys: further metadata.
        more: further tensors, or None by the name of one that is left out.
    """
    model = MODELS[name]
    head, kv = model.get("head", HIDDEN // HEADS), model.get("kv", KV_HEADS)
    random = np.random.default_rng(5)
    tensors: dict[str, Any] = {}

    def matrix(tensor: str, *shape: int) -> None:
        values = random.standard_normal(shape) * (0.5 if len(shape) == 1 else shape[-1] ** -0.5)
        tensors[tensor] = (values + ("norm" in tensor)).astype(np.float32)

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    sizes = {
        "attn_q": (HEADS * head, HIDDEN),
        "attn_k": (kv * head, HIDDEN),
        "attn_v": (kv * head, HIDDEN),
        "attn_output": (HIDDEN, HEADS * head),
        "ffn_gate": (FORWARD, HIDDEN),
        "ffn_up": (FORWARD, HIDDEN),
        "ffn_down": (HIDDEN, FORWARD),
    }
    for layer in range(LAYERS):
        for part, shape in sizes.items():
            scale = 2 if part in ("attn_q", "attn_k") else 1  # so that attention looks somewhere
            matrix(f"blk.{layer}.{part}.weight", *shape)
            tensors[f"blk.{layer}.{part}.weight"] *= scale
            if part in model.get("biases", ()):
                matrix(f"blk.{layer}.{part}.bias", shape[0])
        for part in ("attn_norm", "ffn_norm"):
            matrix(f"blk.{layer}.{part}.weight", HIDDEN)
        for part in ("attn_q_norm", "attn_k_norm") if model.get("norms") else ():
            matrix(f"blk.{layer}.{part}.weight", head)
    matrix("output_norm.weight", HIDDEN)
    if not model.get("tied"):
        matrix("output.weight", VOCABULARY, HIDDEN)
    if "frequencies" in model:
        tensors["rope_freqs.weight"] = np.array(model["frequencies"], np.float32)
    tensors |= more or {}
    kept = {tensor: values for tensor, values in tensors.items() if values is not None}
    write_file(path, model_keys(name) | dict(keys or {}), kept)
