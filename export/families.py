"""Which model families export, which are refused and why, and where mobius is put right."""

from __future__ import annotations

import dataclasses
from typing import Any

import mobius
import onnx_ir as ir

from specplug.types import ExportError

FAMILIES = (
    "apertus",
    "arcee",
    "cohere",
    "cohere2",
    "ernie4_5",
    "exaone4",
    "falcon",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm",
    "glm4",
    "gpt2",
    "gpt_neox",
    "granite",
    "granitemoe",
    "helium",
    "hunyuan_v1_dense",
    "llama",
    "mistral",
    "mixtral",
    "nemotron",
    "olmo",
    "olmo2",
    "olmo3",
    "olmoe",
    "persimmon",
    "phi",
    "phi3",
    "phimoe",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "seed_oss",
    "smollm3",
    "stablelm",
    "starcoder2",
)
"""Model types whose graphs are proved equal to transformers on tiny checkpoints by the tests."""

_ALIBI = "its attention is biased by distance (ALiBi), which GroupQueryAttention cannot express"
_STATE = "its layers keep a recurrent state, which cannot be rolled back by naming a shorter past"

REFUSED = {
    "bloom": _ALIBI,
    "mpt": _ALIBI,
    "gpt_oss": "its attention sinks and its 4-bit experts are not exported yet",
    "gptj": "mobius-onnx 0.1.0 builds its rotation wrongly",
    "diffllama": "differential attention is two attentions in one, with another cache",
    "gemma3": "it takes images: export the text model alone (model type gemma3_text)",
    "deepseek_v2": "its latent attention has another cache",
    "deepseek_v3": "its latent attention has another cache",
    "mamba": _STATE,
    "mamba2": _STATE,
    "jamba": _STATE,
    "bamba": _STATE,
    "falcon_mamba": _STATE,
    "falcon_h1": _STATE,
    "granitemoehybrid": _STATE,
    "lfm2": _STATE,
    "qwen3_next": _STATE,
    "rwkv": _STATE,
    "recurrent_gemma": _STATE,
}
"""Model types that people ask for and that cannot be exported correctly, with the reason."""


def check_family(config: Any) -> None:
    """Refuse what cannot be exported correctly.

    Raises:
        ExportError: naming the family and the reason.
    """
    family = config.model_type
    if family in REFUSED:
        raise ExportError(f"architecture {family!r} is not supported: {REFUSED[family]}")
    if family not in FAMILIES:
        raise ExportError(
            f"architecture {family!r} is not supported yet: have {', '.join(FAMILIES)}"
        )
    if getattr(config, "alibi", False):
        raise ExportError(f"this {family} is not supported: {_ALIBI}")


def mobius_module(source_config: Any, weights: dict[str, Any]) -> Any:
    """mobius's module for a source, with what it gets wrong put right.

    Args:
        source_config: the transformers configuration.
        weights: by transformers' names; renamed in place where mobius expects others.
    """
    made = mobius.registry.get(source_config.model_type)
    reader = getattr(made, "config_class", None) or mobius.ArchitectureConfig
    config = reader.from_transformers(source_config)
    # Weights are read in fp32, whatever type the checkpoint says that it stores.
    config = dataclasses.replace(config, dtype=ir.DataType.FLOAT)
    # mobius ties by the names of Llama; a head under another name comes as a weight of its own.
    tied = "model.embed_tokens.weight" in weights and "lm_head.weight" not in weights
    config = dataclasses.replace(config, tie_word_embeddings=tied)
    if getattr(source_config, "mlp_bias", False):  # mobius reads it for some families only
        config = dataclasses.replace(config, mlp_bias=True)
    if source_config.model_type == "falcon":
        config = _falcon(source_config, config, weights)
    module = made(config)
    if source_config.model_type.startswith("gemma"):
        module.model.embed_tokens.embed_scale = source_config.hidden_size**0.5  # mobius rounds it
    return module


def _falcon(source_config: Any, config: Any, weights: dict[str, Any]) -> Any:
    if source_config.new_decoder_architecture:
        heads = source_config.num_kv_heads
        two_norms = source_config.num_ln_in_parallel_attn in (None, 2)
    else:
        heads = 1 if source_config.multi_query else source_config.num_attention_heads
        two_norms = False
    for name in list(weights):
        renamed = name.replace("post_attention_layernorm", "ln_mlp")
        weights[renamed.replace("input_layernorm", "ln_attn")] = weights.pop(name)
    return dataclasses.replace(
        config,
        num_key_value_heads=heads,
        dual_ln=two_norms,
        parallel_attn=source_config.parallel_attn or source_config.new_decoder_architecture,
    )
