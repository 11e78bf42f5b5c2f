"""GGUF files: configuration, tokenizer and weights, dequantized to fp32.

llama.cpp's own package reads the tensors, transformers the tokenizer, and mobius knows the names.
What is left for us is the metadata's meaning and the order of query and key rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from mobius.integrations.gguf._tensor_mapping import map_gguf_to_hf_names
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)
from transformers.integrations.gguf.reader import read_gguf_metadata

from specplug.export.gguf_pretokenizers import pre_tokenizer
from specplug.export.lazy import LazyTensor
from specplug.export.source import Source, load_model, model_weights
from specplug.export.tokenizers import SourceTokenizer
from specplug.types import ExportError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""What is read from GGUF; the other families come from Hugging Face folders."""

# Of the tensors llama.cpp adds beside the weights; our graphs compute what they hold.
_NOT_WEIGHTS = ("rope_freqs.weight",)

_ROWS = 512  # dequantized at once: what comes in between stays in the cache


def open_gguf(path: Path) -> Source:
    """Read a GGUF file.

    Raises:
        ExportError: not a GGUF file, or one of an architecture or type that is not supported.
    """
    try:
        metadata, names = read_gguf_metadata(str(path))
        architecture = metadata["general.architecture"]
        if architecture not in ARCHITECTURES:
            raise ExportError(
                f"{path.name} is of architecture {architecture!r}: have {', '.join(ARCHITECTURES)}"
            )
        tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        config = _config(architecture, metadata, tensors)
        weights = _weights(architecture, config, tensors)
        model, surplus = load_model(config, weights, path.name)
        if surplus:  # the configuration is of our own making: it must account for everything
            raise ValueError(f"{architecture} has no place for {', '.join(surplus[:3])}")
        tokenizer = _tokenizer(path)
    except ExportError:
        raise
    except Exception as error:  # a damaged file can make the readers raise anything
        raise ExportError(f"{path.name} cannot be read as GGUF: {error}") from error
    if "rope_freqs.weight" in names:
        raise ExportError(
            f"{path.name} scales its rotary frequencies, which is not supported yet from GGUF: "
            "export from the Hugging Face folder"
        )
    return Source(
        path=path,
        config=config,
        weights=model_weights(model),
        tokenizer=tokenizer,
        licence=metadata.get("general.license"),
        files=(path,),
    )


def _config(architecture: str, metadata: dict[str, Any], tensors: dict[str, Any]) -> Any:
    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise KeyError(f"metadata {architecture}.{key}")
        return value

    if f"{architecture}.rope.scaling.type" in metadata:
        kind = get("rope.scaling.type")
        if kind != "none":
            raise ValueError(f"rotary scaling {kind!r} is not supported yet from GGUF")
    heads = get("attention.head_count")
    hidden = get("embedding_length")
    return transformers.AutoConfig.for_model(
        architecture,
        vocab_size=int(tensors["token_embd.weight"].shape[-1]),
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", hidden // heads),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in tensors,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
    )


def _weights(architecture: str, config: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    weights = {}
    for name, tensor in tensors.items():
        if name in _NOT_WEIGHTS:
            continue
        values: Any = _lazy(tensor)
        if architecture == "llama":  # the converters of the other families leave the order alone
            if ".attn_q." in name:
                values = _rotary_halves(values, config.num_attention_heads)
            elif ".attn_k." in name:
                values = _rotary_halves(values, config.num_key_value_heads)
        renamed = map_gguf_to_hf_names(name, architecture)
        if renamed is None:
            raise ValueError(f"tensor {name} has no place in {architecture}")
        weights[renamed] = values
    return weights


def _lazy(tensor: gguf.ReaderTensor) -> LazyTensor:
    shape = [int(size) for size in reversed(tensor.shape)]

    def make() -> torch.Tensor:
        values = np.empty((*tensor.data.shape[:-1], shape[-1]), dtype=np.float32)
        for start in range(0, len(values), _ROWS):
            part = slice(start, start + _ROWS)
            values[part] = gguf.dequantize(tensor.data[part], tensor.tensor_type)
        return torch.from_numpy(values).reshape(shape)

    return LazyTensor(torch.empty(shape, device="meta"), make)


def _rotary_halves(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's order: it keeps the two halves of a rotated pair in neighbouring rows."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _tokenizer(path: Path) -> SourceTokenizer:
    architecture, data, settings = get_gguf_tokenizer(str(path))
    backend, _ = convert_gguf_tokenizer(architecture, data)
    if data.get("tokenizer_type") == "gpt2" and "pre_tokenizer_type" in data:
        rule = pre_tokenizer(data["pre_tokenizer_type"])
        if rule is not None:
            backend.pre_tokenizer = rule
    if settings.get("add_bos_token"):
        from tokenizers import processors

        bos = settings["bos_token"]
        backend.post_processor = processors.Sequence(
            [
                backend.post_processor,
                processors.TemplateProcessing(
                    single=f"{bos} $A", special_tokens=[(bos, data["bos_token_id"])]
                ),
            ]
        )
    special = {
        name: token
        for name, token in settings.items()
        if name.endswith("_token") and isinstance(token, str)
    }
    eos = data.get("eos_token_id")
    return SourceTokenizer(
        json=backend.to_str(),
        stop_token_ids=() if eos is None else (eos,),
        special_tokens=special,
        chat_template=settings.get("chat_template"),
    )
