"""Quantized checkpoints: their weights in fp32, or a refusal with the method and the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from specplug.export.compressed import compressed_parts
from specplug.export.lazy import LazyTensor, MissingValuesError
from specplug.export.packed import Packed, awq_parts, fp8_parts, gptq_parts
from specplug.types import ExportError

Stored = Mapping[str, torch.Tensor]
_PLAIN = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_REMEDY = "give the checkpoint that was quantized, in 16 or 32 bits"


@dataclass(frozen=True, slots=True)
class Method:
    """How one method's checkpoints are read."""

    parts: Callable[[Mapping[str, Any], Stored], list[Packed]]
    read: tuple[str, ...]
    """Keys of its configuration that decide how its tensors are read."""
    unused: tuple[str, ...]
    """Keys that tell how the weights were found, or how they are run; they do not change what the
    tensors stand for."""


METHODS: dict[str, Method] = {
    "fp8": Method(
        fp8_parts,
        ("fmt", "weight_block_size", "scale_fmt"),
        ("activation_scheme", "modules_to_not_convert", "modules_to_convert", "ignored_layers",
         "dequantize", "kv_cache_scheme", "weight_per_tensor", "act_per_tensor"),
    ),
    "mxfp8": Method(
        fp8_parts,
        ("fmt", "weight_block_size", "scale_fmt"),
        ("activation_scheme", "modules_to_not_convert", "modules_to_convert", "ignored_layers",
         "dequantize"),
    ),
    "compressed-tensors": Method(
        compressed_parts,
        ("format", "config_groups", "sparsity_config", "transform_config"),
        ("ignore", "quantization_status", "kv_cache_scheme", "global_compression_ratio", "version",
         "run_compressed", "dequantize"),
    ),
    "gptq": Method(
        gptq_parts,
        ("bits", "group_size", "sym", "checkpoint_format", "format", "pack_dtype", "dynamic",
         "is_marlin_format", "rotation", "adapter"),
        ("method", "desc_act", "dataset", "tokenizer", "damp_percent", "damp_auto_increment",
         "static_groups",
         "true_sequential", "act_group_aware", "lm_head", "meta", "quantizer", "v2", "v2_alpha",
         "mse", "backend", "model_seqlen", "block_name_to_quantize", "batch_size", "pad_token_id",
         "module_name_preceding_first_block", "max_input_length", "cache_block_outputs",
         "modules_in_block_to_quantize", "modules_to_not_convert", "model_name_or_path",
         "model_file_base_name", "use_exllama", "disable_exllama", "exllama_config",
         "use_cuda_fp16", "uri"),
    ),
    "awq": Method(
        awq_parts,
        ("bits", "w_bit", "group_size", "q_group_size", "zero_point", "version", "format",
         "checkpoint_format", "pack_dtype", "dynamic"),
        ("method", "lm_head", "meta", "backend", "modules_to_not_convert", "do_fuse", "sym",
         "fuse_max_seq_len", "modules_to_fuse", "exllama_config", "desc_act"),
    ),
}  # fmt: skip
"""Methods that are read."""

REFUSED_METHODS: dict[str, str] = {
    "aqlm": "",
    "auto-round": "save it in the format auto_gptq or auto_awq",
    "autoround": "save it in the format auto_gptq or auto_awq",
    "bitnet": "",
    "bitsandbytes": "save it dequantized, with the model's dequantize() in transformers",
    "bitsandbytes_4bit": "save it dequantized, with the model's dequantize() in transformers",
    "bitsandbytes_8bit": "save it dequantized, with the model's dequantize() in transformers",
    "eetq": "",
    "exl2": "",
    "fbgemm_fp8": "",
    "fouroversix": "",
    "fp_quant": "",
    "gemma": "",
    "higgs": "",
    "hqq": "",
    "metal": "",
    "mlx": "convert it with mlx_lm.convert --dequantize",
    "modelopt": "",
    "mxfp4": "only gpt_oss is made so, and its architecture is not exported yet",
    "nvfp4": "",
    "quanto": "",
    "quark": "",
    "sinq": "",
    "spqr": "",
    "torchao": "",
    "vptq": "",
}
"""Methods that people ask for and that are not read, with a remedy of their own; all others that
are not in METHODS are refused, too."""


def dequantized(
    quantization: Mapping[str, Any] | None,
    stored: Stored,
    source: str,
    integers: Collection[str] = (),
) -> tuple[dict[str, torch.Tensor], tuple[str, ...]]:
    """A checkpoint's tensors as plain ones, quantized ones in fp32 and lazily.

    Args:
        quantization: the configuration's ``quantization_config``; None: there is none.
        stored: the tensors by name.
        source: what it is called, for errors.
        integers: names of tensors that are integers and no weights.

    Returns:
        The tensors, and the names of scales of activations and of the KV cache, which are left out:
        neither is quantized here.

    Raises:
        ExportError: a method, a format or a key that is not read; a scale that is missing, of
            another shape, or of no weight; weights in integers or in 8-bit floats without a
            configuration that tells how.
    """
    made: dict[str, torch.Tensor] = dict(stored)
    left_out: tuple[str, ...] = ()
    if quantization is not None:
        method = _method(quantization, source)
        try:
            for part in method.parts(quantization, stored):
                for name in part.names:
                    made.pop(name, None)
                made[part.weight] = _lazy(part)
        except MissingValuesError:
            raise
        except (ExportError, KeyError, TypeError, ValueError) as error:
            raise ExportError(f"{source}: {_told(error)}") from error
        left_out = tuple(sorted(name for name in made if _OF_ACTIVATIONS.search(name)))
        for name in left_out:
            made.pop(name)
    for name, tensor in made.items():
        if tensor.dtype not in _PLAIN and name not in integers:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ExportError(
                f"{source}: {name} is stored as {kind}, and config.json has no quantization_config "
                f"that says how to read it: {_REMEDY}"
                if quantization is None
                else f"{source}: {name} is stored as {kind}, and quantization_config does not say "
                f"how to read it: {_REMEDY}"
            )
    return made, left_out


_OF_ACTIVATIONS = re.compile(
    r"\.(input_scale|input_zero_point|input_global_scale|output_scale|output_zero_point"
    r"|activation_scale|[kqv]_scale|[kqv]_zero_point)$"
)


def _told(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"quantization_config has no {error}"
    return str(error)


def _lazy(part: Packed) -> LazyTensor:
    like = torch.empty(part.shape, dtype=torch.float32, device="meta")

    def make() -> torch.Tensor:
        return part.make(*(_values(tensor) for tensor in part.tensors))

    return LazyTensor(like, make)


def _values(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return tensor.values() if isinstance(tensor, LazyTensor) else tensor


def _method(quantization: Mapping[str, Any], source: str) -> Method:
    """The method of a configuration, whose keys are all known.

    Raises:
        ExportError: it is not read, or a key is not known.
    """
    name = quantization.get("quant_method")
    if name is None:
        name = "bitsandbytes" if _is_bitsandbytes(quantization) else "mlx"
    name = str(name).replace("_", "-") if str(name).startswith("compressed") else str(name)
    if name not in METHODS:
        own = REFUSED_METHODS.get(name)
        remedy = f"{own}, or {_REMEDY}" if own else _REMEDY
        raise ExportError(
            f"{source} is quantized by {name}, which is not read ({', '.join(METHODS)} are): "
            f"{remedy}"
        )
    method = METHODS[name]
    known = {"quant_method", *method.read, *method.unused}
    for key in quantization:
        if key not in known:
            raise ExportError(
                f"{source} is quantized by {name} with {key!r}, which is not known: {_REMEDY}, or "
                "remove the key from config.json if it does not change what the weights stand for"
            )
    return method


def _is_bitsandbytes(quantization: Mapping[str, Any]) -> bool:
    return any(key.startswith(("load_in_", "bnb_")) for key in quantization)
