"""What becomes of each field of transformers' ``GenerationConfig`` under speculation."""

from __future__ import annotations

from typing import Any

from transformers import GenerationConfig

HONOURED = (
    # as processors, which are called as they are
    "bad_words_ids", "begin_suppress_tokens", "epsilon_cutoff", "eta_cutoff",
    "exponential_decay_length_penalty", "forced_bos_token_id", "forced_eos_token_id",
    "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "min_length", "min_new_tokens",
    "min_p", "no_repeat_ngram_size",
    "remove_invalid_values", "renormalize_logits", "repetition_penalty", "sequence_bias",
    "suppress_tokens", "temperature", "top_h", "top_k", "top_p", "typical_p",
    "watermarking_config",
    # as what ends an answer
    "eos_token_id", "max_length", "max_new_tokens", "max_time", "stop_strings",
    # before the answer, or around it
    "bos_token_id", "do_sample", "num_return_sequences", "pad_token_id",
    "return_dict_in_generate", "token_healing",
)  # fmt: skip
"""Fields that mean under speculation what they mean without. A few values are refused by name, such
as a watermark that remembers its calls."""

REFUSED = (
    # other ways to decode
    "assistant_early_exit", "constraints", "dola_layers", "force_words_ids", "num_beams",
    "num_beam_groups", "penalty_alpha", "prompt_lookup_num_tokens", "speculation_type", "use_mtp",
    # a second run of the model a token
    "guidance_scale",
    # what is not kept of drafted positions
    "output_attentions", "output_hidden_states", "output_logits", "output_scores",
)  # fmt: skip
"""Fields that are refused where they ask for anything."""

WITHOUT_EFFECT = (
    # on how transformers drafts, which it does not here
    "assistant_confidence_threshold", "assistant_ensemble_weight", "assistant_lookbehind",
    "is_assistant", "max_matching_ngram_size", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "target_lookbehind",
    # of beams, which are refused
    "diversity_penalty", "early_stopping", "length_penalty",
    # of an encoder, which is refused
    "decoder_start_token_id",
    # on the cache and the compiler; the tokens are the same
    "cache_config", "cache_implementation", "compile_config", "continuous_batching_config",
    "disable_compile", "low_memory", "max_cache_len", "prefill_chunk_size", "use_cache",
    # of the file
    "transformers_version",
)  # fmt: skip
"""Fields that change no token of a decoder's greedy or sampled answer in transformers either."""


def check_fields(config: Any) -> None:
    """Refuse fields that a later transformers has and this module does not know.

    Raises:
        ValueError: naming the field.
    """
    known = {*HONOURED, *REFUSED, *WITHOUT_EFFECT}
    for name, default in vars(GenerationConfig()).items():
        value = getattr(config, name, default)
        unknown = not name.startswith("_") and name not in known
        if unknown and value is not None and value != default:
            raise ValueError(
                f"{name} {value!r}: this specplug does not know the option: leave it out, or "
                "generate without speculation"
            )
    if config.speculation_type is not None:
        raise ValueError(
            f"speculation_type {config.speculation_type!r}: it is for transformers' own "
            "speculation: leave it out"
        )
