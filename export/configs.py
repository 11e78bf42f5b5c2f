"""Configurations of checkpoint folders, read by transformers' own classes, never by a folder's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers

from specplug.export.families import check_family
from specplug.export.folders import CONFIG, check_folder, read_json
from specplug.types import ExportError

LEAST_POSITIONS, MOST_POSITIONS = 16, 1 << 24
"""Tokens a text may have: rotary tables have a row for each."""
QUANTIZATION_KEYS = {
    "quantization_config": "how the weights are quantized",
    "compression_config": "the same, in old files",
    "quantization": "the same, of MLX; refused",
}
"""Keys of config.json that say how weights are quantized."""
KEYS = {
    "model_type": "which of transformers' classes reads all other keys; refused if missing",
    "auto_map": "refused if it names another class for the model than transformers' own",
    "transformers_weights": "refused",
    **QUANTIZATION_KEYS,
}
"""Keys of config.json that are read here; transformers' class of the model type reads the rest."""


def read_config(folder: Path) -> tuple[Any, Mapping[str, Any] | None]:
    """The transformers configuration of a checkpoint folder.

    Returns:
        The configuration, without its quantization; and that, None if the weights are plain.

    Raises:
        ExportError: a file of the folder is not what it is called, the configuration is of no
            model that can be exported, or the folder's own code defines the model.
    """
    found = read_json(folder / CONFIG)
    check_folder(folder, found)
    _check_kind(folder, found)
    quantization = next((found[key] for key in QUANTIZATION_KEYS if found.get(key)), None)
    if quantization is not None and not isinstance(quantization, dict):
        raise ExportError(f"{folder / CONFIG}: quantization_config is no object")
    try:
        # How the reference runs is chosen here: a folder could name code to download for it.
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, attn_implementation="eager"
        )
        check_family(config)
    except ExportError:
        raise
    except Exception as error:  # values of any type can make transformers raise anything
        raise ExportError(f"transformers cannot load {folder}: {one_line(error)}") from error
    config.return_dict = True  # how the reference answers; weights do not depend on it
    _check_class(folder, found, config)
    for key in QUANTIZATION_KEYS:
        if hasattr(config, key):
            delattr(config, key)
    return config, quantization


def one_line(error: Exception) -> str:
    """What an error says, without its line breaks."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError) and len(error.args) == 1 and isinstance(error.args[0], str):
        text = error.args[0] if " " in error.args[0] else f"it knows no {text}"
    return text or repr(error)


def check_sizes(config: Any, tensors: int | None = None) -> None:
    """Refuse sizes that no checkpoint has, before anything is made of them.

    Args:
        config: the transformers configuration.
        tensors: number of tensors that the checkpoint holds; None where layers are checked apart.

    Raises:
        ExportError: naming the size.
    """
    layers = getattr(config, "num_hidden_layers", None)
    if tensors is not None and isinstance(layers, int) and layers > tensors:
        raise ExportError(f"the configuration has {layers} layers, and the file {tensors} tensors")
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < LEAST_POSITIONS:
        raise ExportError(
            f"the configuration says that texts may have {positions} tokens, and {LEAST_POSITIONS} "
            "are the fewest: correct max_position_embeddings (of GGUF context_length)"
        )
    if isinstance(positions, int) and positions > MOST_POSITIONS:
        raise ExportError(
            f"the configuration says that texts may have {positions} tokens, and {MOST_POSITIONS} "
            "are the most: set max_position_embeddings (of GGUF context_length) to the length that "
            "you need"
        )
    heads = getattr(config, "num_attention_heads", None)
    size = getattr(config, "head_dim", None)
    if size is None and isinstance(heads, int) and heads > 0:
        size = config.hidden_size // heads
    if isinstance(size, int) and size % 8:
        raise ExportError(
            f"attention heads of size {size} are not supported: ONNX Runtime's attention computes "
            "multiples of 8"
        )


def _check_kind(folder: Path, found: Mapping[str, Any]) -> None:
    kind = found.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise ExportError(
            f"{folder / CONFIG} has no model_type: it is not the configuration of a transformers "
            "model"
        )
    if "transformers_weights" in found:
        raise ExportError(
            f"{folder / CONFIG} names its weights by transformers_weights: call that file "
            "model.safetensors, and remove the key"
        )
    if kind not in transformers.CONFIG_MAPPING and found.get("auto_map"):
        raise ExportError(
            f"architecture {kind!r} is not supported: it is defined by Python files of "
            f"{folder.name} (auto_map in {CONFIG}), and code that comes with weights is never run"
        )


def _check_class(folder: Path, found: Mapping[str, Any], config: Any) -> None:
    """Refuse a known model type whose maker's own class is another one than transformers'."""
    named = found.get("auto_map") or {}
    own = named.get("AutoModelForCausalLM") if isinstance(named, dict) else None
    known = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].__name__
    if isinstance(own, str) and own.rpartition(".")[2] != known:
        raise ExportError(
            f"{folder.name} is of model type {config.model_type!r}, and its {CONFIG} says that its "
            f"own code, {own}, is the model (auto_map) rather than transformers' {known}: code "
            "that comes with weights is never run"
        )
