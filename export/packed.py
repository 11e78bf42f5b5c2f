"""Which tensors of a quantized checkpoint make up a weight: fp8, GPTQ, AWQ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from specplug.export import unpacking
from specplug.export.lazy import LazyTensor, MissingValuesError
from specplug.types import ExportError

Stored = Mapping[str, torch.Tensor]
FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_GPTQ_BITS = (2, 3, 4, 8)


@dataclass(frozen=True, slots=True)
class Packed:
    """A weight and the tensors that it is made of."""

    weight: str
    """What it is called."""
    shape: tuple[int, int]
    names: tuple[str, ...]
    """Of the tensors that stand for it."""
    tensors: tuple[torch.Tensor | None, ...]
    make: Callable[..., torch.Tensor]
    """From the tensors' values to f32[shape]."""


def fp8_parts(config: Mapping[str, Any], stored: Stored) -> list[Packed]:
    """Weights in e4m3 with one scale, or one for each block, that they are multiplied by.

    The scale is called ``weight_scale_inv`` (DeepSeek, transformers) or ``weight_scale`` (AutoFP8).

    Raises:
        ExportError: a weight has no scale, or one of another shape, or a scale no weight.
    """
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise ExportError(f"quantization_config's fmt is {config['fmt']!r}: e4m3 is read")
    found = []
    for name, weight in stored.items():
        if weight.dtype not in FP8 or not name.endswith(".weight"):
            continue
        scale = next((n for n in (f"{name}_scale_inv", f"{name}_scale") if n in stored), None)
        if scale is None:
            raise ExportError(f"{name} is in 8 bits, and its scale, {name}_scale_inv, is missing")
        shape = _matrix(name, weight)
        block = tuple(config.get("weight_block_size") or ())
        if stored[scale].numel() == 1:
            block = shape
        elif len(block) != 2:
            raise ExportError(
                f"{scale} is of shape {tuple(stored[scale].shape)}, and quantization_config has no "
                "weight_block_size"
            )
        check_scale(stored[scale], shape, block, scale)
        make = partial(_scaled, shape=shape, block=block, name=scale)
        found.append(Packed(name, shape, (name, scale), (weight, stored[scale]), make))
    check_scales(stored, found, ("_scale_inv", "_scale"))
    return found


def check_scale(
    scale: torch.Tensor, shape: tuple[int, int], block: tuple[int, ...], name: str
) -> None:
    """Refuse a scale whose shape is not that of a matrix's blocks, values or not."""
    unpacking.spread(torch.empty(scale.shape, device="meta"), shape, (block[0], block[1]), name)


def check_scales(stored: Stored, found: list[Packed], ends: tuple[str, ...]) -> None:
    """Refuse a scale of a weight that is not quantized, or that is missing."""
    used = {name for part in found for name in part.names}
    for name in stored:
        if name.endswith(tuple(f".weight{end}" for end in ends)) and name not in used:
            raise ExportError(f"{name} scales no quantized weight of the checkpoint")


def _scaled(
    weight: torch.Tensor,
    scale: torch.Tensor,
    *,
    shape: tuple[int, int],
    block: tuple[int, int],
    name: str,
) -> torch.Tensor:
    return weight.float() * unpacking.spread(unpacking.scale_values(scale), shape, block, name)


def _matrix(name: str, weight: torch.Tensor) -> tuple[int, int]:
    if weight.ndim != 2:
        raise ExportError(f"{name} has {weight.ndim} dimensions: quantized matrices are read")
    return weight.shape[0], weight.shape[1]


def gptq_parts(config: Mapping[str, Any], stored: Stored) -> list[Packed]:
    """Weights of AutoGPTQ and GPTQModel, packed into 32-bit words.

    A zero point is stored less 1 in the format "gptq" and as it is in "gptq_v2". Symmetric ones are
    the middle in both, so that files in the second format under the first one's name are read
    rightly, too.

    Raises:
        ExportError: a format that is not read, or tensors that are missing or contradict it.
    """
    bits = int(config["bits"])
    forms = {config[key] for key in ("checkpoint_format", "format") if config.get(key)} or {"gptq"}
    form = " or ".join(sorted(forms))
    wrong = {
        f"bits {bits}": bits not in _GPTQ_BITS,
        f"checkpoint_format {form!r}": form not in ("gptq", "gptq_v2"),
        f"pack_dtype {config.get('pack_dtype')!r}": config.get("pack_dtype", "int32") != "int32",
        "is_marlin_format": bool(config.get("is_marlin_format")),
        "rotation": bool(config.get("rotation")),
        "adapter": bool(config.get("adapter")),
        "dynamic, other bits for some layers": _overrides(config.get("dynamic")),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ExportError(
                f"GPTQ with {what} is not read: quantize with the format gptq and 2, 3, 4 or 8 "
                "bits for all layers, or give the checkpoint that was quantized"
            )
    symmetric = bool(config.get("sym", True))
    offset = {"gptq": 1, "gptq_v2": 0}[form]
    found = []
    for base in _bases(stored, ".qweight"):
        words, zeros, scales = (_get(stored, base, end) for end in ("qweight", "qzeros", "scales"))
        inputs, outputs = words.shape[0] * 32 // bits, words.shape[1]
        size = int(config["group_size"])
        count = -(-inputs // size) if size > 0 else 1
        packed = -(-outputs * bits // 32)
        _expect(f"{base}.scales", scales, (count, outputs))
        _expect(f"{base}.qzeros", zeros, (count, packed))
        order = stored.get(f"{base}.g_idx")
        if order is not None and order.numel():
            _expect(f"{base}.g_idx", order, (inputs,))
        else:
            order = torch.arange(inputs) // (size if size > 0 else inputs)
        _check_zeros(f"{base}.qzeros", zeros, bits, outputs, form, symmetric)
        _check_order(base, order, count)
        make = partial(_gptq, bits=bits, offset=None if symmetric else offset)
        names = tuple(f"{base}.{end}" for end in ("qweight", "qzeros", "scales", "g_idx"))
        tensors = (words, zeros, scales, order)
        found.append(Packed(f"{base}.weight", (outputs, inputs), names, tensors, make))
    return found


def _gptq(
    words: torch.Tensor,
    zeros: torch.Tensor,
    scales: torch.Tensor,
    order: torch.Tensor,
    *,
    bits: int,
    offset: int | None,
) -> torch.Tensor:
    return unpacking.gptq(words, zeros, scales, order.long(), bits, offset)


def _overrides(dynamic: Any) -> bool:
    """Whether some layers are quantized otherwise; those that are left out start with a minus."""
    return any(not str(pattern).startswith("-") for pattern in dynamic or ())


def _check_zeros(
    name: str, zeros: torch.Tensor, bits: int, outputs: int, form: str, symmetric: bool
) -> None:
    given = _values(zeros)
    if given is None:
        return
    stored = sorted(set(unpacking.unpack_bits(given, bits, outputs).flatten().tolist()))
    middle, highest = 1 << (bits - 1), (1 << bits) - 1
    allowed = [[middle]] if form == "gptq_v2" else [[middle - 1], [middle]]
    if symmetric and stored not in allowed:
        raise ExportError(
            f"{name} holds {stored[0]} to {stored[-1]}, and with sym in the format {form} each "
            f"would be {allowed[0][0]}: set sym to false if the checkpoint is asymmetric"
        )
    if not symmetric and form == "gptq" and stored[-1] == highest:
        raise ExportError(
            f"{name} holds {highest}, which some tools read as the zero point {highest + 1} and "
            "others as 0: save the checkpoint in the format gptq_v2"
        )


def _check_order(base: str, order: torch.Tensor, count: int) -> None:
    given = _values(order)
    if given is None:
        return
    if given.min() < 0 or given.max() >= count or (count > 1 and not given.any()):
        raise ExportError(
            f"{base}.g_idx names the groups {int(given.min())} to {int(given.max())}, and there "
            f"are {count}"
        )


def _values(tensor: torch.Tensor) -> torch.Tensor | None:
    """The values, None where they were not downloaded."""
    try:
        return tensor.values() if isinstance(tensor, LazyTensor) else tensor
    except MissingValuesError:
        return None


def awq_parts(config: Mapping[str, Any], stored: Stored) -> list[Packed]:
    """Weights of AutoAWQ's kind "gemm": 4 bits with zero points.

    Raises:
        ExportError: another kind, or tensors that are missing or of other shapes.
    """
    bits = config.get("bits", config.get("w_bit", 4))
    size = int(config.get("group_size", config.get("q_group_size", 128)))
    kinds = {
        str(config[k]).lower() for k in ("version", "checkpoint_format", "format") if k in config
    }
    kind = " or ".join(sorted(kinds or {"gemm"}))
    zero_point = config.get("zero_point", True)
    others = _overrides(config.get("dynamic")) or config.get("pack_dtype", "int32") != "int32"
    if bits != 4 or kind != "gemm" or not zero_point or others:
        raise ExportError(
            f"AWQ of kind {kind!r} with {bits} bits and zero_point {zero_point} is not read: "
            "quantize with version gemm, 4 bits and zero points, or give the checkpoint that was "
            "quantized"
        )
    found = []
    for base in _bases(stored, ".qweight"):
        names = tuple(f"{base}.{end}" for end in ("qweight", "qzeros", "scales"))
        words, zeros, scales = (_get(stored, base, end) for end in ("qweight", "qzeros", "scales"))
        inputs, outputs = words.shape[0], 8 * words.shape[1]
        count = inputs // size if size > 0 else 1
        _expect(names[1], zeros, (count, outputs // 8))
        _expect(names[2], scales, (count, outputs))
        tensors = (words, zeros, scales)
        found.append(Packed(f"{base}.weight", (outputs, inputs), names, tensors, unpacking.awq))
    return found


def _bases(stored: Stored, end: str) -> list[str]:
    return [name.removesuffix(end) for name in stored if name.endswith(end)]


def _get(stored: Stored, base: str, end: str) -> torch.Tensor:
    if f"{base}.{end}" not in stored:
        raise ExportError(f"{base}.{end} is missing, and {base} is quantized")
    return stored[f"{base}.{end}"]


def _expect(name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ExportError(
            f"{name} is of shape {tuple(tensor.shape)}, and by quantization_config it would be "
            f"{shape}"
        )
