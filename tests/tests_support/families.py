"""A tiny configuration of every family, with what is peculiar to it switched on."""

from __future__ import annotations

from typing import Any

MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
WINDOW = 8
LOCAL = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
PARTIAL = {
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
}
OWN_SIZES = {"head_dim": None, "num_key_value_heads": None, "intermediate_size": None}
"""None: the configuration does not have it."""


def yarn(**more: Any) -> dict[str, Any]:
    return {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, **more}


# What users ask for by name (fast), then what mobius has beyond it (slow).
NAMED: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama untied": {"tie_word_embeddings": False, "num_key_value_heads": 4},
    "llama biased": {"attention_bias": True, "mlp_bias": True},
    "llama scaled": {
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }
    },
    "mistral": {"sliding_window": None},
    "mistral windowed": {"sliding_window": WINDOW},
    "qwen2": {},
    "qwen2 windowed": {"use_sliding_window": True, "max_window_layers": 1, **LOCAL},
    "qwen2 yarn": {"rope_parameters": yarn(rope_theta=10000.0)},
    "qwen3": {},
    "qwen3_moe": {**MOE, "norm_topk_prob": True},
    "gemma2": {"hidden_size": 96, **LOCAL, "query_pre_attn_scalar": 32},
    "gemma2 capped": {**LOCAL, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gemma3_text": {"hidden_size": 96, **LOCAL, "query_pre_attn_scalar": 32},
    "phi": {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    },
    "phi wide": {**PARTIAL, "hidden_size": 128, "head_dim": 32},
    "phi3": {"pad_token_id": 0, "sliding_window": WINDOW},
    "phi3 long": {
        "pad_token_id": 0,
        "rope_parameters": {
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0 + i / 8 for i in range(8)],
            "long_factor": [2.0 + i for i in range(8)],
            "original_max_position_embeddings": 100,
        },
        "original_max_position_embeddings": 100,
    },
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 1200, **OWN_SIZES},
    "gpt_neox": {"tie_word_embeddings": False},
    "gpt_neox tied": {"use_parallel_residual": True},
    "falcon": {"multi_query": True, "parallel_attn": True, **OWN_SIZES},
    "falcon grouped": {"new_decoder_architecture": True, "num_kv_heads": 2, **OWN_SIZES},
    "falcon sequential": {
        "multi_query": False,
        "parallel_attn": False,
        "bias": True,
        **OWN_SIZES,
    },
    "stablelm": {},
    "olmo2": {},
    "granite": {
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.2,
    },
    "smollm3": {"no_rope_layer_interval": 2, "pad_token_id": 0},
    "mixtral": {**LOCAL_EXPERTS, "sliding_window": None},
}

OTHERS: dict[str, dict[str, Any]] = {
    "apertus": {},
    "arcee": {},
    "cohere": {},
    "cohere2": LOCAL,
    "ernie4_5": {},
    "exaone4": LOCAL,
    "gemma": {"hidden_size": 96},
    "glm": {"pad_token_id": 0},
    "glm4": {"pad_token_id": 0},
    "granitemoe": LOCAL_EXPERTS,
    "helium": {},
    "hunyuan_v1_dense": {},
    "nemotron": {},
    "olmo": {},
    "olmo3": LOCAL,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "persimmon": {},
    "phimoe": {**LOCAL_EXPERTS, "sliding_window": None},
    "qwen2_moe": MOE,
    "seed_oss": {},
    "starcoder2": {"sliding_window": WINDOW},
}
