"""GGUF files: configuration, tokenizer and weights, dequantized to fp32.

transformers reads the container and dequantizes; mobius knows the names. What is left for us is
the metadata's meaning and llama.cpp's order of query and key rows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from mobius.integrations.gguf._tensor_mapping import map_gguf_to_hf_names
from transformers.integrations.gguf.dequant import GGML_BLOCK, dequantize
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)
from transformers.integrations.gguf.reader import (
    GgufHeader,
    load_gguf_state_dict,
    read_gguf_metadata,
)

from specplug.export.source import Source
from specplug.export.tokenizers import SourceTokenizer
from specplug.types import ExportError

ARCHITECTURES = ("llama", "mistral", "qwen2", "qwen3")
"""What is read from GGUF; the other families come from Hugging Face folders."""

# Of the tensors llama.cpp adds beside the weights; our graphs compute what they hold.
_NOT_WEIGHTS = ("rope_freqs.weight",)


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
        header = GgufHeader.from_file(str(path))
        config = _config(architecture, metadata, header)
        weights = _weights(architecture, config, header)
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
        weights=weights,
        tokenizer=tokenizer,
        licence=metadata.get("general.license"),
        files=(path,),
    )


def _config(architecture: str, metadata: dict[str, Any], header: GgufHeader) -> Any:
    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise KeyError(f"metadata {architecture}.{key}")
        return value

    if f"{architecture}.rope.scaling.type" in metadata:
        kind = get("rope.scaling.type")
        if kind != "none":
            raise ValueError(f"rotary scaling {kind!r} is not supported yet from GGUF")
    shapes = {info.name: info.shape for info in header.tensors}
    heads = get("attention.head_count")
    hidden = get("embedding_length")
    return transformers.AutoConfig.for_model(
        architecture,
        vocab_size=shapes["token_embd.weight"][0],
        hidden_size=hidden,
        intermediate_size=get("feed_forward_length"),
        num_hidden_layers=get("block_count"),
        num_attention_heads=heads,
        num_key_value_heads=get("attention.head_count_kv", heads),
        head_dim=get("attention.key_length", hidden // heads),
        max_position_embeddings=get("context_length"),
        rms_norm_eps=get("attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": get("rope.freq_base", 10000.0)},
        tie_word_embeddings="output.weight" not in shapes,
        bos_token_id=metadata.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=metadata.get("tokenizer.ggml.eos_token_id"),
    )


def _weights(architecture: str, config: Any, header: GgufHeader) -> dict[str, Any]:
    shapes = {info.name: info.shape for info in header.tensors}
    weights = {}
    for name, lazy in load_gguf_state_dict(header).items():
        if name in _NOT_WEIGHTS:
            continue
        stored = lazy[...]
        quantized = lazy.ggml_type in GGML_BLOCK
        values = dequantize(stored.reshape(-1), lazy.ggml_type) if quantized else stored.float()
        values = values.reshape(shapes[name])
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


def _rotary_halves(rows: Any, heads: int) -> Any:
    """Undo llama.cpp's order: it keeps the two halves of a rotated pair in neighbouring rows."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _tokenizer(path: Path) -> SourceTokenizer:
    architecture, data, settings = get_gguf_tokenizer(str(path))
    backend, _ = convert_gguf_tokenizer(architecture, data)
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
