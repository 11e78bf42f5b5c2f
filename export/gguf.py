"""GGUF files: configuration, tokenizer and weights, dequantized to fp32, as llama.cpp reads them.

llama.cpp's own package dequantizes the tensors. What is left for us is the metadata's meaning, the
tensors' names, and the order of query and key rows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from specplug.export.configs import check_sizes
from specplug.export.gguf_file import Tensor, read_gguf
from specplug.export.gguf_keys import check_keys, check_kind
from specplug.export.gguf_rotation import FREQUENCIES, rope_parameters
from specplug.export.gguf_specials import SpecialTokens
from specplug.export.gguf_vocabulary import gguf_tokenizer
from specplug.export.lazy import LazyTensor
from specplug.export.source import Source, load_model, model_weights
from specplug.types import ExportError

ARCHITECTURES = ("llama", "qwen2", "qwen3")
"""What is read from GGUF; the other families come from Hugging Face folders."""

_ROWS = 512  # dequantized at once: what comes in between stays in the cache

_ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
_FEED_FORWARD = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}  # of qwen3

TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
    **{
        f"blk.N.{own}.{part}": f"model.layers.N.{theirs}.{part}"
        for own, theirs in (_ATTENTION | _FEED_FORWARD).items()
        for part in ("weight", "bias")
    },
    **{
        f"blk.N.{own}.weight": f"model.layers.N.{theirs}.weight"
        for own, theirs in (_NORMS | _HEAD_NORMS).items()
    },
}
"""transformers' names of the tensors, by those of the file; N is the number of a layer."""


def open_gguf(path: Path) -> Source:
    """Read a GGUF file.

    Raises:
        ExportError: not a GGUF file, one that is cut off or damaged, or one of an architecture or
            type, or with metadata or tensors, that is not supported.
    """
    file = read_gguf(path)
    metadata, tensors = file.metadata, dict(file.tensors)
    check_kind(metadata, path.name)
    architecture = metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{path.name} is of architecture {architecture!r}: have {', '.join(ARCHITECTURES)}"
        )
    try:
        frequencies = tensors.pop(FREQUENCIES, None) if architecture == "llama" else None
        config = _config(architecture, metadata, tensors, frequencies, path.name)
        check_sizes(config, len(tensors))
        tokenizer = gguf_tokenizer(metadata)
        weights = _weights(architecture, config, tensors)
        model, surplus = load_model(config, weights, path.name)
        if surplus:  # the configuration is of our own making: it must account for everything
            raise ValueError(f"{architecture} has no place for {', '.join(surplus[:3])}")
    except ExportError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise ExportError(f"{path.name} cannot be read as GGUF: {error}") from error
    return Source(
        path=path,
        config=config,
        weights=model_weights(model),
        tokenizer=tokenizer,
        licence=metadata.get("general.license"),
        files=(path,),
    )


def _config(
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    frequencies: Tensor | None,
    name: str,
) -> Any:
    def get(key: str, default: float | None = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if type(value) is list and len(set(value)) == 1:  # one a layer, all the same
            value = value[0]
        if type(value) not in (int, float):
            what = "missing" if value is None else f"{value!r}, and one number is read"
            raise ValueError(f"{architecture}.{key} is {what}")
        return value

    heads, hidden = get("attention.head_count"), get("embedding_length")
    shape = {
        "context": get("context_length"),
        "hidden": hidden,
        "head": get("attention.key_length", hidden // heads),
        "base": get("rope.freq_base", 10000.0),
    }
    check_keys(metadata, architecture, shape, name)
    if "token_embd.weight" not in tensors:
        raise ValueError("tensor token_embd.weight is missing")
    specials = SpecialTokens(metadata) if "tokenizer.ggml.tokens" in metadata else None
    rows = tensors["token_embd.weight"].shape[0]
    tokens = len(metadata.get("tokenizer.ggml.tokens", ()))
    if tokens > rows:
        raise ValueError(f"tokenizer.ggml.tokens has {tokens}, and token_embd.weight {rows} rows")
    biased = [
        any(tensor.endswith(f".{part}.bias") for part in parts for tensor in tensors)
        for parts in (_ATTENTION, _FEED_FORWARD)
    ]
    options = {} if architecture == "qwen2" else {"attention_bias": biased[0]}
    if architecture == "llama":
        options["mlp_bias"] = biased[1]
    return transformers.AutoConfig.for_model(
        architecture,
        vocab_size=rows,
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=shape["head"],
        max_position_embeddings=shape["context"],
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope_parameters(metadata, architecture, shape, frequencies),
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=None if specials is None else specials.role("bos"),
        eos_token_id=None if specials is None else specials.role("eos"),
        **options,
    )


def _weights(architecture: str, config: Any, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    weights = {}
    for name, tensor in tensors.items():
        values: Any = _lazy(tensor)
        if architecture == "llama":  # the converters of the other families leave the order alone
            if ".attn_q." in name:
                values = _rotary_halves(values, config.num_attention_heads)
            elif ".attn_k." in name:
                values = _rotary_halves(values, config.num_key_value_heads)
        weights[_renamed(name, architecture)] = values
    for name, size in _missing_biases(architecture, config, tensors).items():
        weights[_renamed(name, architecture)] = torch.zeros(size)
    return weights


def _renamed(name: str, architecture: str) -> str:
    layer = re.match(r"blk\.(\d+)\.", name)
    found = TENSORS.get(name if layer is None else "blk.N." + name[layer.end() :])
    if found is None:
        raise ValueError(f"tensor {name} has no place in {architecture}")
    return found if layer is None else found.replace("N", layer[1], 1)


def _missing_biases(
    architecture: str, config: Any, tensors: Mapping[str, Tensor]
) -> dict[str, int]:
    """Biases that the transformers model has, and that llama.cpp adds only where they are."""
    parts = list(_ATTENTION if getattr(config, "attention_bias", False) else ())
    if architecture == "qwen2":
        parts = ["attn_q", "attn_k", "attn_v"]
    if getattr(config, "mlp_bias", False):
        parts += _FEED_FORWARD
    names = [f"blk.{layer}.{part}" for layer in range(config.num_hidden_layers) for part in parts]
    return {
        f"{name}.bias": tensors[f"{name}.weight"].shape[0]
        for name in names
        if f"{name}.bias" not in tensors and f"{name}.weight" in tensors
    }


def _lazy(tensor: Tensor) -> LazyTensor:
    def make() -> torch.Tensor:
        values = np.empty((*tensor.stored.shape[:-1], tensor.shape[-1]), dtype=np.float32)
        for start in range(0, len(values), _ROWS):
            part = slice(start, start + _ROWS)
            values[part] = tensor.rows(part)
        return torch.from_numpy(values)

    return LazyTensor(torch.empty(tensor.shape, device="meta"), make)


def _rotary_halves(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's order: it keeps the two halves of a rotated pair in neighbouring rows."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
