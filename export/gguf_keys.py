"""Every metadata key of a GGUF file that is read, and every value that changes nothing.

The reader asks this table for each key of a file: one of the architecture or of the tokenizer
that is not here, or that has a value which the transformers model cannot express, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from specplug.export.gguf_specials import FILL_IN_TEXTS, ROLES
from specplug.types import ExportError

READ = (
    "context_length",
    "embedding_length",
    "block_count",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scale_linear",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
)
"""Keys under the architecture's name that become a part of the configuration."""

HARMLESS = ("vocab_size", "rope.scaling.finetuned", "tensor_data_layout")
"""Keys under the architecture's name that llama.cpp computes nothing from."""

Shape = Mapping[str, Any]  # context, hidden, head and base, of the file's own keys


def _is(*values: Any) -> Callable[[Any, Shape], bool]:
    return lambda value, shape: value in values


def _equals(what: str) -> Callable[[Any, Shape], bool]:
    return lambda value, shape: bool(value == shape[what])


def _window(value: Any, shape: Shape) -> bool:
    return bool(value == 0 or value >= shape["context"])


def _scale(value: Any, shape: Shape) -> bool:
    return value == 0 or math.isclose(value, shape["head"] ** -0.5, rel_tol=1e-6)


NEUTRAL: dict[str, tuple[Callable[[Any, Shape], bool], str]] = {
    "attention.causal": (_is(True), "true"),
    "attention.value_length": (_equals("head"), "attention.key_length"),
    "attention.key_length_swa": (_equals("head"), "attention.key_length"),
    "attention.value_length_swa": (_equals("head"), "attention.key_length"),
    "attention.sliding_window": (_window, "0, or context_length and more"),
    "attention.scale": (_scale, "0, or 1 / sqrt(attention.key_length)"),
    "attention.clamp_kqv": (_is(0), "0"),
    "attention.max_alibi_bias": (_is(0), "0"),
    "attention.temperature_scale": (_is(0), "0"),
    "rope.dimension_count": (_equals("head"), "attention.key_length"),
    "rope.dimension_count_swa": (_equals("head"), "attention.key_length"),
    "rope.freq_base_swa": (_equals("base"), "rope.freq_base"),
    "rope.scaling.alpha": (_is(0), "0"),
    "rope.scaling.yarn_ext_factor": (_is(1), "1"),
    "rope.scaling.yarn_attn_factor": (_is(1), "1"),
    "rope.scaling.yarn_beta_fast": (_is(32), "32"),
    "rope.scaling.yarn_beta_slow": (_is(1), "1"),
    "rope.scaling.yarn_log_multiplier": (_is(0), "0"),
    "logit_scale": (_is(0, 1), "1"),
    "residual_scale": (_is(0, 1), "1"),
    "embedding_scale": (_is(0, 1), "1"),
    "attn_logit_softcapping": (_is(0), "0"),
    "final_logit_softcapping": (_is(0), "0"),
    "embedding_length_out": (_equals("hidden"), "embedding_length"),
    "use_parallel_residual": (_is(False), "false"),
    "pooling_type": (_is(0), "0"),
    "nextn_predict_layers": (_is(0), "0"),
    "expert_count": (_is(0), "0"),
    "expert_used_count": (_is(0), "0"),
    "expert_group_count": (_is(0), "0"),
    "expert_group_used_count": (_is(0), "0"),
    "expert_shared_count": (_is(0), "0"),
}
"""Keys under the architecture's name that may be there with a value that changes nothing."""

GENERAL = ("architecture", "type", "name", "license", "alignment")
"""Keys under ``general.`` that are read; the others describe the file."""

TOKENIZER = (
    "ggml.model",
    "ggml.pre",
    "ggml.tokens",
    "ggml.token_type",
    "ggml.scores",
    "ggml.merges",
    *(f"ggml.{role}_token_id" for role in (*ROLES, *list(FILL_IN_TEXTS)[:3])),
    "ggml.prefix_token_id",
    "ggml.suffix_token_id",
    "ggml.middle_token_id",
    "ggml.add_bos_token",
    "ggml.add_eos_token",
    "ggml.add_space_prefix",
    "chat_template",
)
"""Keys under ``tokenizer.`` that are read."""

TOKENIZER_HARMLESS = (
    "ggml.token_type_count",
    "ggml.seperator_token_id",
    "ggml.cls_token_id",
    "ggml.mask_token_id",
    "ggml.add_sep_token",
    "ggml.precompiled_charsmap",
    "chat_templates",
    "huggingface.json",
    "rwkv.world",
)
"""Keys under ``tokenizer.`` that llama.cpp computes nothing from for the kinds that are read."""

TOKENIZER_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "ggml.remove_extra_whitespaces": (False,),
    "ggml.normalizer.lowercase": (False,),
    "ggml.normalizer.strip_accents": (False,),
    "ggml.suppress_tokens": ([],),
}
"""Keys under ``tokenizer.`` with the values that change nothing."""


def check_kind(metadata: Mapping[str, Any], name: str) -> None:
    """Refuse a file that is not a whole model.

    Raises:
        ExportError: it is a part, an adapter, or something else than a model.
    """
    parts = metadata.get("split.count", 1)
    if parts > 1:
        raise ExportError(
            f"{name} is one of {parts} parts of a model: join them with llama.cpp's "
            "llama-gguf-split --merge"
        )
    kind = metadata.get("general.type", "model")
    if kind == "adapter" or any(key.startswith("adapter.") for key in metadata):
        raise ExportError(f"{name} is an adapter: merge it into its model first")
    if kind != "model":
        raise ExportError(f"{name} has general.type = {kind!r}, and only 'model' is read")


def check_keys(metadata: Mapping[str, Any], architecture: str, shape: Shape, name: str) -> None:
    """Refuse what would make another model or tokenizer than the one that is read.

    Args:
        metadata: of the file.
        architecture: its ``general.architecture``.
        shape: ``context``, ``hidden`` and ``head`` (lengths), and ``base`` (of the rotation).
        name: the file's.

    Raises:
        ExportError: naming the key and its value.
    """

    def refuse(key: str, right: str) -> None:
        value = repr(metadata[key])
        value = value if len(value) < 40 else value[:36] + " ..."
        raise ExportError(f"{name} has {key} = {value}, which is not supported: {right}")

    for key, value in metadata.items():
        prefix, _, rest = key.partition(".")
        if prefix == architecture and rest not in READ and rest not in HARMLESS:
            if rest not in NEUTRAL:
                refuse(key, "it is not known")
            accepts, right = NEUTRAL[rest]
            if type(value) is list or not accepts(value, shape):
                refuse(key, f"only {right} is read")
        elif prefix == "tokenizer" and rest not in TOKENIZER and rest not in TOKENIZER_HARMLESS:
            if rest.startswith("chat_template."):
                continue  # a further one, by its name
            if rest not in TOKENIZER_NEUTRAL:
                refuse(key, "it is not known")
            if value not in TOKENIZER_NEUTRAL[rest]:
                refuse(key, f"only {TOKENIZER_NEUTRAL[rest][0]!r} is read")
