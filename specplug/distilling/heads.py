"""A new head for a target, and the folder it is kept in, as the ``speculators`` library has it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from specplug.export.eight_bits import CONFIG as CONFIG_OF_EIGHT_BITS
from specplug.export.eight_bits import to_eight_bits
from specplug.export.head import Head, HeadShape
from specplug.export.lazy import LazyTensor
from specplug.export.source import Source
from specplug.export.speculators import EMBEDDINGS, HeadSource, read_shape
from specplug.staging import replace_file
from specplug.types import ExportError, Int32Array

WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.json", "provenance.json"

NORMS: Mapping[str, bool] = {
    "fc_norm": True,
    "norm_before_fc": False,
    "norm_before_residual": True,
    "norm_output": False,
}
"""Norms of a new head. A target's hidden states differ by layer in size, and by token a hundredfold
(arXiv:2402.17762), so each is normed by itself."""

_LAYERS = {"llama": "llama", "mistral": "llama", "qwen2": "llama", "qwen3": "qwen3"}
"""Kinds of targets, and of the layer that is like theirs."""
_ROTATIONS = ("default", "linear", "llama3")  # which do not change with the number of positions
_COPIED = (
    "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads",
    "rms_norm_eps", "rope_parameters", "vocab_size", "initializer_range", "bos_token_id",
    "eos_token_id",
)  # fmt: skip
_QUANTIZED = re.compile(r"[.-](?:I?Q\d\w*|B?F16|F32)\.gguf$", re.IGNORECASE)
_SPECULATED = 4  # tokens that the file says to draft; specplug decides by itself


def head_shape(
    target: Any,
    layers: tuple[int, ...],
    vocab_size: int,
    max_length: int,
    norms: Mapping[str, bool] = NORMS,
) -> HeadShape:
    """The shape of a head with a layer like the target's.

    Args:
        target: its transformers configuration.
        layers: of the target, whose inputs the head reads.
        vocab_size: of the draft vocabulary.
        max_length: entries that it can have.
        norms: which it has; those of :data:`NORMS` that are left out are absent.

    Raises:
        ExportError: there is no layer like the target's among those of heads, or the target has
            fewer layers, tokens or positions.
    """
    return read_shape(_config(target, None, layers, vocab_size, max_length, norms), target)


def new_head(shape: HeadShape, source: Source, vocabulary: Int32Array, seed: int) -> Head:
    """A head to be trained: embedding, last norm and output rows are the target's.

    Args:
        shape: of the head.
        source: the target.
        vocabulary: the target's ids that it guesses, ascending, i32[shape.vocab_size].
        seed: of the other weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = Head(shape)
    norm = source.weights.get("model.norm.weight")
    with torch.no_grad():
        head.embed_tokens.weight.copy_(_embedding(source))
        head.lm_head.weight.copy_(_output_rows(source)[_long(vocabulary)])
        if norm is not None:
            head.norm.weight.copy_(_values(norm))
    return head


def with_vocabulary(start: HeadSource, source: Source, vocabulary: Int32Array) -> Head:
    """A trained head that guesses other tokens.

    Output rows of tokens that it knew stay. Training has moved all of them much alike, and rows
    left where it began would be far louder: so a new token's row is the target's, put through the
    affine map that brings the target's rows nearest to the trained ones.

    Args:
        start: the head; stays as it is.
        source: its target.
        vocabulary: the target's ids that it is to guess, ascending.
    """
    trained = start.head.lm_head.weight.detach()
    ids = torch.arange(len(trained)) if start.vocabulary is None else _long(start.vocabulary)
    wanted = _long(vocabulary)
    target = _output_rows(source)
    moved = torch.linalg.lstsq(_with_one(target[ids]), trained, driver="gelsd").solution
    known = torch.full((start.head.shape.input_vocab_size,), -1)
    known[ids] = torch.arange(len(ids))
    places = known[wanted]
    head = Head(replace(start.head.shape, vocab_size=len(vocabulary)))
    weights = dict(start.head.state_dict())
    weights["lm_head.weight"] = torch.where(
        places[:, None] < 0, _with_one(target[wanted]) @ moved, trained[places]
    )
    head.load_state_dict(weights)
    return head


def save_head(
    folder: Path,
    head: Head,
    source: Source,
    vocabulary: Int32Array | None,
    provenance: Mapping[str, Any] | None = None,
    *,
    eight_bits: bool = False,
) -> Path:
    """Write a head, whole or not at all, as :mod:`specplug.export.speculators` reads it.

    Args:
        folder: made if need be; files of these names in it are replaced.
        head: what is written; without its embedding where that is the target's.
        source: the target.
        vocabulary: the target's ids that it guesses, ascending; None: they are all.
        provenance: where it comes from, kept as provenance.json.
        eight_bits: its matrices as :mod:`specplug.export.eight_bits` has them; otherwise in fp32.

    Returns:
        The folder.
    """
    shape = head.shape
    tensors = {name: w.detach().cpu().contiguous() for name, w in head.state_dict().items()}
    if torch.equal(tensors["embed_tokens.weight"], _embedding(source)):
        del tensors["embed_tokens.weight"]
    if vocabulary is not None:
        ids = _long(vocabulary)
        tensors["d2t"] = ids - torch.arange(len(ids))
        tensors["t2d"] = torch.zeros(shape.input_vocab_size, dtype=torch.bool)
        tensors["t2d"][ids] = True
    norms = {name: bool(getattr(shape, name)) for name in NORMS}
    config = _config(
        source.config, _called(source), shape.layers, shape.vocab_size, shape.max_length, norms
    )
    if eight_bits:
        tensors, config["quantization_config"] = to_eight_bits(tensors), CONFIG_OF_EIGHT_BITS
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / WEIGHTS, lambda part: save_file(tensors, part))
    for name, value in ((PROVENANCE, provenance), (CONFIG, config)):  # the one that is looked for
        if value is not None:
            text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
            replace_file(folder / name, partial(Path.write_text, data=text))
    return folder


def _config(
    target: Any,
    name: str | None,
    layers: tuple[int, ...],
    vocab_size: int,
    max_length: int,
    norms: Mapping[str, bool],
) -> dict[str, Any]:
    kind = target.model_type
    if kind not in _LAYERS:
        raise ExportError(
            f"no head can be made for a target of kind {kind!r}: have {', '.join(_LAYERS)}"
        )
    rotation = target.rope_parameters.get("rope_type", "default")
    if rotation not in _ROTATIONS:
        raise ExportError(
            f"no head can be made for a target with rotations of kind {rotation!r}: have "
            f"{', '.join(_ROTATIONS)}"
        )
    for what, wanted, found in (
        ("vocab_size", vocab_size, target.vocab_size),
        ("max_length", max_length, target.max_position_embeddings - 1),
    ):
        if not 1 <= wanted <= found:
            raise ExportError(f"{what} is {wanted}: give 1 to {found} for this target")
    layer = {key: getattr(target, key) for key in _COPIED} | {
        "model_type": _LAYERS[kind],
        "head_dim": getattr(target, "head_dim", None)
        or target.hidden_size // target.num_attention_heads,
        "num_hidden_layers": 1,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": max_length + 1,
        "tie_word_embeddings": False,
        "use_cache": True,
    }
    if layer["model_type"] == "llama":
        layer["mlp_bias"] = False
    return {
        "architectures": ["Eagle3DraftModel"],
        "draft_vocab_size": vocab_size,
        "dtype": "float32",
        "eagle_aux_hidden_state_layer_ids": list(layers),
        "embed_requires_grad": False,
        **{name: norms.get(name, False) for name in NORMS},
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [
                {
                    "accept_tolerance": 0.0,
                    "proposal_type": "greedy",
                    "speculative_tokens": _SPECULATED,
                    "verifier_accept_k": 1,
                }
            ],
            "verifier": {
                "architectures": [transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(target)].__name__],
                "name_or_path": name,
            },
        },
        "speculators_model_type": "eagle3",
        "target_hidden_size": None,
        "tie_word_embeddings": False,
        "transformer_layer_config": layer,
    }


def _called(source: Source) -> str:
    """A target's name, how its GGUF file is rounded left out."""
    return source.name or _QUANTIZED.sub("", source.path.absolute().name)


def _embedding(source: Source) -> torch.Tensor:
    return _values(next(source.weights[name] for name in EMBEDDINGS if name in source.weights))


def _output_rows(source: Source) -> torch.Tensor:
    rows = source.weights.get("lm_head.weight")
    return _embedding(source) if rows is None else _values(rows)


def _with_one(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1)], 1)


def _long(ids: Int32Array) -> torch.Tensor:
    return torch.from_numpy(ids.astype(np.int64))


def _values(weight: Any) -> torch.Tensor:
    values: torch.Tensor = weight.values() if isinstance(weight, LazyTensor) else weight
    return values.detach().float()
