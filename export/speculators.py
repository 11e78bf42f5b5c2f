"""Draft heads that the ``speculators`` library trained: a folder with config.json and safetensors.

Two kinds: ``eagle3`` guesses a token at a call, ``dflash`` a block of them.

Read without the library: the format is names and tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors import safe_open

from specplug.bundle import HiddenOutput
from specplug.bundle_paths import file_sha256
from specplug.export.attention import max_entries, read_attention
from specplug.export.block_head import BlockHead, BlockShape
from specplug.export.configs import check_sizes, one_line
from specplug.export.folders import check_weights, read_json, readable
from specplug.export.head import Head, HeadShape
from specplug.export.lazy import LazyTensor
from specplug.export.quantized import dequantized
from specplug.export.source import Source
from specplug.types import ExportError, Int32Array, SpecplugError

_CONFIG = "config.json"
_KINDS = {"eagle3": ("llama", "qwen3"), "dflash": ("qwen3",)}
"""Kinds of heads, and of decoder layers that the library builds them of."""
KEYS = {
    "speculators_model_type": "eagle3 or dflash",
    "architectures": "tells a head in another format from a model",
    "transformer_layer_config": "the layers, by transformers' class of their model_type",
    "speculators_config": "the verifier that the head was made for",
    "draft_vocab_size": "",
    "target_hidden_size": "",
    "eagle_aux_hidden_state_layer_ids": "the target's layers whose inputs the head reads",
    "aux_hidden_state_layer_ids": "the same",
    "norm_before_residual": "",
    "norm_before_fc": "",
    "fc_norm": "",
    "norm_output": "",
    "block_size": "",
    "mask_token_id": "",
    "sample_from_anchor": "",
    "tie_word_embeddings": "true is refused",
    "quantization_config": "as of a Hugging Face folder",
}
"""Keys of a head's configuration that are read."""
_SWITCHES = (
    "norm_before_residual",
    "norm_before_fc",
    "fc_norm",
    "norm_output",
    "sample_from_anchor",
)
UNUSED_KEYS = (
    "auto_map",
    "dtype",
    "torch_dtype",
    "embed_requires_grad",
    "sliding_window_non_causal",
    "speculators_version",
    "transformers_version",
    "model_type",
    "_name_or_path",
    "base_model_ep_plan",
    "base_model_pp_plan",
    "base_model_tp_plan",
    "chunk_size_feed_forward",
    "has_no_defaults_at_init",
    "id2label",
    "is_encoder_decoder",
    "label2id",
    "output_attentions",
    "output_hidden_states",
    "problem_type",
    "return_dict",
)
"""Keys that do not change what a head guesses: the library's version, its training, its code, of
sliding windows, which are refused, and what transformers writes into any configuration."""
_WHY_NOT = {
    "mtp": ". MTP heads are built for targets with recurrent layers or sparse attention, whose "
    "caches cannot be rolled back by length"
}
EMBEDDINGS = ("model.embed_tokens.weight", "transformer.wte.weight", "gpt_neox.embed_in.weight")
"""What targets call theirs."""
_EMBEDDING, _LM_HEAD = "embed_tokens.weight", "lm_head.weight"
_LARGEST_BLOCK = 64  # tokens
_VOCABULARY = ("t2d", "d2t")
_NOT_OURS = (*_VOCABULARY, "verifier_norm.weight", "verifier_lm_head.weight")


@dataclass(frozen=True, slots=True)
class HeadSource:
    """A head, read."""

    path: Path
    head: Head | BlockHead
    vocabulary: Int32Array | None
    """Of each token that it guesses the target's id, i32[vocab_size]; None: they are the target's.
    """
    files: tuple[Path, ...]
    table: str
    """What the target calls its embedding."""
    eight_bits: bool = False
    """Whether its matrices are stored in 8 bits."""
    licence: str | None = None

    def parameters(self) -> int:
        """Number of weights, an embedding that is the target's included."""
        return sum(weight.numel() for weight in self.head.parameters())

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that were read, by name."""
        return {path.name: file_sha256(path) for path in self.files}


def is_head(path: Path) -> bool:
    """Whether a folder holds a head, of whatever kind and format, rather than a model."""
    config = path / _CONFIG
    if not config.is_file():
        return False
    try:
        return _kind(json.loads(config.read_bytes())) is not None
    except (ValueError, RecursionError, AttributeError, TypeError):
        return False


def _kind(config: dict[str, Any]) -> str | None:
    """What a head calls itself: in the library's format its kind, in others its architecture."""
    own: str | None = config.get("speculators_model_type")
    architectures: list[str] = config.get("architectures") or []
    others = (name for name in architectures if re.search("eagle|dflash", name, re.IGNORECASE))
    return own or next(others, None)


def open_head(path: Path, target: Source) -> HeadSource:
    """Read a head for a target.

    Raises:
        ExportError: it is of a kind or a shape that is not supported, was made for another model,
            or its weights do not fit its configuration.
    """
    with _readable(path):
        config = read_json(path / _CONFIG)
        _check_kind(path, config)
        _check_verifier(path, config, target)
        shape = read_shape(config, target.config)
        shards, stored, eight_bits = _stored(path, config)
    table = _table(target)
    return HeadSource(
        path,
        _module(path, shape, stored, target),
        _vocabulary(path, stored, shape),
        (path / _CONFIG, *shards),
        table,
        eight_bits,
    )


def reopen_head(path: Path, hidden: HiddenOutput, target: Callable[[], Source]) -> Head | BlockHead:
    """The module of a head that was exported before, for engines that run it as it is.

    Args:
        path: the head's folder.
        hidden: what its target gives it.
        target: opens that target, whose embedding and LM head are the head's where that has none
            of its own.

    Raises:
        ExportError: it cannot be read, or its weights do not fit its configuration.
    """
    with _readable(path):
        config = read_json(path / _CONFIG)
        shape = _shape(config, tuple(hidden.layers), hidden.size // len(hidden.layers))
        _, stored, _ = _stored(path, config)
    complete = stored.keys() >= {_EMBEDDING, _LM_HEAD}
    return _module(path, shape, stored, None if complete else target())


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except SpecplugError:
        raise
    except Exception as error:  # values of any type can make transformers and torch raise anything
        kind, why = type(error).__name__, one_line(error)
        raise ExportError(f"the head {path} cannot be read: {kind}: {why}") from error


def _stored(
    path: Path, config: Mapping[str, Any]
) -> tuple[tuple[Path, ...], dict[str, torch.Tensor], bool]:
    """The files, their tensors, and whether there were any in 8 bits."""
    shards = check_weights(path)
    found = {name: tensor for shard in shards for name, tensor in _tensors(shard).items()}
    eight_bits = any(tensor.dtype == torch.int8 for tensor in found.values())
    made, _ = dequantized(
        config.get("quantization_config"), found, f"the head {path.name}", _VOCABULARY
    )
    loaded = {name: t.values() if isinstance(t, LazyTensor) else t for name, t in made.items()}
    return shards, loaded, eight_bits


def has_table_of(head: HeadSource, target: Source) -> bool:
    """Whether a head's embedding is its target's; False where that was not downloaded yet."""
    if head.table not in target.weights or target.download_bytes:
        return False
    return torch.equal(head.head.embed_tokens.weight, _values(target.weights[head.table]))


def _values(weight: torch.Tensor) -> torch.Tensor:
    values = weight.values() if isinstance(weight, LazyTensor) else weight
    return values.detach().float()


def _table(target: Source) -> str:
    """What a target calls its embedding."""
    return next((name for name in EMBEDDINGS if name in target.weights), EMBEDDINGS[0])


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    kind = _kind(config)
    if kind not in _KINDS:
        raise ExportError(
            f"{path.name} is a head of kind {kind!r}: {' and '.join(_KINDS)} are supported, in the "
            "format of the speculators library (which converts heads in others)"
            + _WHY_NOT.get(kind or "", "")
        )
    for key in config:
        if key not in KEYS and key not in UNUSED_KEYS:
            raise ExportError(
                f"the head {path.name} has the key {key!r} in its {_CONFIG}, which is not known: "
                "remove it if the head is the same without"
            )
    layer = config["transformer_layer_config"]
    wrong = {
        "tie_word_embeddings": (config.get("tie_word_embeddings", False), (False,)),
        "layers of kind": (layer["model_type"], _KINDS[kind]),
        "hidden_act": (layer.get("hidden_act", "silu"), ("silu",)),
        "attention_bias": (layer.get("attention_bias", False), (False,)),
        "mlp_bias": (layer.get("mlp_bias", False), (False,)),
        **{key: (config.get(key), (True, False, None)) for key in _SWITCHES},
    }
    for each in layer.get("layer_types") or ():
        if each != "full_attention":
            wrong["layers of type"] = each, ("full_attention",)
    if kind == "eagle3":
        wrong["num_hidden_layers"] = layer.get("num_hidden_layers", 1), (1,)
    for name, (found, allowed) in wrong.items():
        if found not in allowed:
            raise ExportError(
                f"the head {path.name} has {name} {found!r}: only "
                f"{' and '.join(map(repr, allowed))} can be exported"
            )


def _check_verifier(path: Path, config: dict[str, Any], target: Source) -> None:
    """Refuse a head that was made for another model, by whatever tells."""
    layer, made_for = config["transformer_layer_config"], config["speculators_config"]["verifier"]
    ours = target.config
    kind = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(ours)].__name__
    theirs = {
        "architecture": (made_for.get("architectures") or [kind], kind),
        "vocabulary": (layer["vocab_size"], ours.vocab_size),
        "hidden size": (config.get("target_hidden_size") or layer["hidden_size"], ours.hidden_size),
    }
    name = made_for.get("name_or_path")
    for what, (wanted, found) in theirs.items():
        if found != wanted and not (isinstance(wanted, list) and found in wanted):
            wanted = ", ".join(wanted) if isinstance(wanted, list) else wanted
            raise ExportError(
                f"the head {path.name} was made for {name or 'a model'} with {what} {wanted}, and "
                f"the target {target.path.name} has {found}: give the head of this target"
            )
    if name and not _is_called(target, name):
        raise ExportError(
            f"the head {path.name} was made for {name}, and the target is "
            f"{target.name or target.path.name}: its drafts would be refused. If they are one "
            f"model, set speculators_config.verifier.name_or_path in the head's {_CONFIG} to null"
        )


def _is_called(target: Source, name: str) -> bool:
    """Whether a target is of a name, folders and owners left out; GGUF files add to it."""
    wanted, ours = (
        re.split(r"[/\\]", each.rstrip("/\\"))[-1].lower()
        for each in (name.partition("@")[0], target.name or str(target.path.absolute()))
    )
    return ours == wanted or (
        ours.endswith(".gguf") and ours.startswith((f"{wanted}.", f"{wanted}-"))
    )


def read_shape(config: dict[str, Any], target: Any) -> HeadShape | BlockShape:
    """What a head is, by its configuration and that of its target, a transformers one.

    Raises:
        ExportError: it rotates a part of its heads, or reads layers that the target has not.
    """
    return _shape(config, _layers(config, target), int(target.hidden_size))


def _layers(config: dict[str, Any], target: Any) -> tuple[int, ...]:
    """The target's layers whose inputs the head reads."""
    count = int(target.num_hidden_layers)
    given = config.get("aux_hidden_state_layer_ids", config.get("eagle_aux_hidden_state_layer_ids"))
    layers = given or [2, count // 2, count - 3]
    if not all(isinstance(each, int) and 0 <= each < count for each in layers):
        raise ExportError(
            f"the head reads what the target's layers {layers} read, and the target has {count}: "
            f"0 to {count - 1} can be given"
        )
    return tuple(layers)


def _shape(
    config: dict[str, Any], layers: tuple[int, ...], target_size: int
) -> HeadShape | BlockShape:
    layer = transformers.AutoConfig.for_model(**config["transformer_layer_config"])
    check_sizes(layer)
    attention = read_attention(layer)[0]
    head_size = int(layer.head_dim)
    if attention.rotary is None or 2 * attention.rotary.cos.shape[1] != head_size:
        raise ExportError("the head rotates some values of its heads only: this is not supported")
    shared: dict[str, Any] = {
        "input_vocab_size": int(layer.vocab_size),
        "vocab_size": int(config["draft_vocab_size"]),
        "layers": layers,
        "target_size": target_size,
        "hidden_size": int(layer.hidden_size),
        "intermediate_size": int(layer.intermediate_size),
        "heads": int(layer.num_attention_heads),
        "key_heads": int(layer.num_key_value_heads),
        "head_size": head_size,
        "epsilon": float(layer.rms_norm_eps),
        "rotary": attention.rotary,
        "max_length": max_entries(layer),
        "query_key_norm": layer.model_type == "qwen3",
    }
    if _kind(config) == "dflash":
        return BlockShape(**shared, **_block(config, int(layer.num_hidden_layers)))
    return HeadShape(
        **shared,
        norm_before_residual=bool(config.get("norm_before_residual", False)),
        norm_before_fc=bool(config.get("norm_before_fc", False)),
        fc_norm=bool(config.get("fc_norm", False)),
        norm_output=bool(config.get("norm_output", False)),
    )


def _block(config: dict[str, Any], depth: int) -> dict[str, Any]:
    size, mask = config["block_size"], config.get("mask_token_id")
    vocab = int(config["transformer_layer_config"]["vocab_size"])
    if not isinstance(mask, int) or not 0 <= mask < vocab:
        raise ExportError(
            f"the head's mask_token_id is {mask}: it has to be one of the target's {vocab} tokens"
        )
    if not 2 <= size <= _LARGEST_BLOCK:
        raise ExportError(f"the head's block_size is {size}: 2 to {_LARGEST_BLOCK} can be given")
    return {
        "depth": depth,
        "block": int(size),
        "mask_token": mask,
        "first_guess": 0 if config.get("sample_from_anchor") else 1,
    }


def _tensors(shard: Path) -> dict[str, torch.Tensor]:
    with readable(shard), safe_open(shard, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _vocabulary(path: Path, stored: dict[str, torch.Tensor], shape: HeadShape) -> Int32Array | None:
    """The target's ids; in the file each is what it exceeds the head's own id by."""
    if "d2t" not in stored:
        if shape.vocab_size != shape.input_vocab_size:
            raise ExportError(
                f"the head {path.name} guesses {shape.vocab_size} of {shape.input_vocab_size} "
                "tokens, and its file does not say which (d2t)"
            )
        return None
    ids = stored["d2t"].numpy().astype(np.int64) + np.arange(len(stored["d2t"]))
    known = stored.get("t2d")
    if (
        ids.shape != (shape.vocab_size,)
        or len(set(ids.tolist())) != len(ids)
        or not 0 <= ids.min() <= ids.max() < shape.input_vocab_size
        or (known is not None and sorted(ids.tolist()) != known.nonzero()[:, 0].tolist())
    ):
        raise ExportError(
            f"the head {path.name} has a d2t that does not name {shape.vocab_size} of the "
            f"target's {shape.input_vocab_size} tokens, or others than its t2d"
        )
    return ids.astype(np.int32)


def _module(
    path: Path,
    shape: HeadShape,
    stored: dict[str, torch.Tensor],
    target: Source | None,
) -> Head | BlockHead:
    weights = {name: w.float() for name, w in stored.items() if name not in _NOT_OURS}
    table = _table(target) if target else ""
    if target and _EMBEDDING not in weights and table in target.weights:
        weights[_EMBEDDING] = _values(target.weights[table])
    head: Head | BlockHead
    if isinstance(shape, BlockShape):
        head = BlockHead(shape)
        if target and _LM_HEAD not in weights and shape.vocab_size == shape.input_vocab_size:
            own = target.weights.get(_LM_HEAD, target.weights.get(table))
            weights |= {} if own is None else {_LM_HEAD: _values(own)}
    else:
        head = Head(shape)
    expected = {name: tuple(weight.shape) for name, weight in head.state_dict().items()}
    found = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ExportError(
                f"the head {path.name} does not fit its configuration: {name} is "
                f"{found.get(name, 'missing')}, and should be {expected.get(name, 'absent')}"
            )
    head.load_state_dict(weights)
    return head.eval()
