"""Which tensors make up a weight in the formats of the compressed-tensors library."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from specplug.export import unpacking
from specplug.export.lazy import LazyTensor, MissingValuesError
from specplug.export.packed import FP8, Packed, Stored, check_scale, check_scales
from specplug.types import ExportError

FORMATS = (
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "pack-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
)
"""Formats that are read; the last names none, and each group has its own."""
_GROUP = ("targets", "weights", "input_activations", "output_activations", "format")
_WEIGHTS = {
    "num_bits", "type", "symmetric", "strategy", "group_size", "block_structure", "dynamic",
    "actorder", "observer", "observer_kwargs", "scale_dtype", "zp_dtype",
}  # fmt: skip
_ENDS = ("", "_packed", "_scale", "_zero_point", "_shape", "_global_scale", "_g_idx")


def compressed_parts(config: Mapping[str, Any], stored: Stored) -> list[Packed]:
    """The weights of a checkpoint of compressed-tensors.

    Raises:
        ExportError: a format that is not read, or tensors that are missing or contradict it.
    """
    for key in ("sparsity_config", "transform_config"):
        if config.get(key):
            raise ExportError(f"compressed-tensors with {key} is not read")
    groups = list((config.get("config_groups") or {}).values())
    for group in groups:
        _check_group(group, config.get("format"))
    found = []
    for name, tensor in stored.items():
        packed = name.endswith(".weight_packed")
        plain = name.endswith(".weight") and tensor.dtype in (torch.int8, *FP8)
        if packed or plain:
            weight = name.removesuffix("_packed")
            found.append(_part(weight, _group_of(weight, groups), stored))
    check_scales(stored, found, ("_scale", "_global_scale", "_zero_point"))
    return found


def _check_group(group: Any, form: str | None) -> None:
    if not isinstance(group, Mapping):
        raise ExportError(f"compressed-tensors' preset of schemes {group!r} is not read")
    weights = group.get("weights") or {}
    unknown = [*(key for key in group if key not in _GROUP), *(weights.keys() - _WEIGHTS)]
    if unknown:
        raise ExportError(f"compressed-tensors with {unknown[0]!r} in config_groups is not read")
    own = group.get("format") or form
    if weights and own not in FORMATS:
        raise ExportError(
            f"compressed-tensors' format {own!r} is not read: {', '.join(FORMATS)} are; save the "
            "checkpoint compressed, with a current version of the library"
        )


def _group_of(weight: str, groups: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The weights' scheme of the group that a module is in: names go before patterns, and patterns
    before classes, as in the library."""
    module = weight.removesuffix(".weight")

    def rank(target: str) -> int | None:
        if target == module:
            return 0
        if target.startswith("re:"):
            return 1 if re.match(target[3:], module) else None
        return 2 if re.fullmatch(r"[A-Z]\w*", target) else None  # a class, such as Linear

    ranked = [
        (place, index)
        for index, group in enumerate(groups)
        for target in group.get("targets") or ()
        if (place := rank(target)) is not None and group.get("weights")
    ]
    if not ranked:
        raise ExportError(f"{weight} is quantized, and no group of quantization_config names it")
    best = min(ranked)
    schemes = [groups[index]["weights"] for place, index in ranked if place == best[0]]
    if any(scheme != schemes[0] for scheme in schemes):
        raise ExportError(f"{weight} is in two groups of quantization_config")
    scheme: Mapping[str, Any] = schemes[0]
    return scheme


def _part(weight: str, scheme: Mapping[str, Any], stored: Stored) -> Packed:
    names = [f"{weight}{end}" for end in _ENDS if f"{weight}{end}" in stored]
    packed, scale = stored.get(f"{weight}_packed"), stored.get(f"{weight}_scale")
    zero, overall = stored.get(f"{weight}_zero_point"), stored.get(f"{weight}_global_scale")
    order, bits = stored.get(f"{weight}_g_idx"), int(scheme["num_bits"])
    if scale is None:
        raise ExportError(f"{weight} is quantized, and its scale, {weight}_scale, is missing")
    if scheme.get("strategy") == "tensor_group" and overall is None:
        raise ExportError(f"{weight} is quantized, and {weight}_global_scale is missing")
    if not scheme.get("symmetric", True) and zero is None:
        raise ExportError(f"{weight} is asymmetric, and {weight}_zero_point is missing")
    source = stored[weight] if packed is None else packed
    if source.ndim != 2:
        raise ExportError(f"{weight} has {source.ndim} dimensions: quantized matrices are read")
    _check_type(weight, source, scheme)
    shape = _shape(weight, source, scheme, stored)
    block = _block(scheme, shape, order is not None)
    check_scale(scale, (shape[0], shape[1]), block, f"{weight}_scale")
    make = partial(_values, bits=bits, shape=shape, block=block, name=f"{weight}_scale")
    return Packed(weight, shape, tuple(names), (source, scale, zero, overall, order), make)


def _check_type(weight: str, source: torch.Tensor, scheme: Mapping[str, Any]) -> None:
    kind, bits = scheme.get("type", "int"), int(scheme["num_bits"])
    allowed = {
        torch.int32: kind == "int" and 1 <= bits <= 8,
        torch.uint8: kind == "float" and bits == 4,
        torch.int8: kind == "int" and bits <= 8,
    } | dict.fromkeys(FP8, kind == "float" and bits == 8)
    if not allowed.get(source.dtype):
        raise ExportError(
            f"{weight} is stored as {str(source.dtype).removeprefix('torch.')}, and "
            f"quantization_config says {kind} of {bits} bits"
        )


def _shape(
    weight: str, source: torch.Tensor, scheme: Mapping[str, Any], stored: Stored
) -> tuple[int, int]:
    rows, columns = source.shape
    if source.dtype == torch.uint8:
        return rows, 2 * columns
    if source.dtype != torch.int32:
        return rows, columns
    said = stored.get(f"{weight}_shape")
    if said is None:
        raise ExportError(f"{weight} is packed, and {weight}_shape is missing")
    try:
        given = said.values() if isinstance(said, LazyTensor) else said
    except MissingValuesError:
        return rows, columns * 32 // int(scheme["num_bits"])
    found = tuple(int(value) for value in given)
    if (
        len(found) != 2
        or found[0] != rows
        or -(-found[1] * int(scheme["num_bits"]) // 32) != columns
    ):
        raise ExportError(f"{weight}_shape says {found}, and {weight}_packed is {rows} x {columns}")
    return rows, found[1]


def _block(scheme: Mapping[str, Any], shape: tuple[int, int], ordered: bool) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    strategy = scheme.get("strategy")
    size = scheme.get("group_size")
    if strategy is None:
        strategy = "tensor" if size is None else "group" if size > 0 else "channel"
    if strategy == "block":
        structure = scheme["block_structure"]
        if isinstance(structure, str):  # "128x128", as the library once wrote it
            structure = structure.split("x")
        return int(structure[0]), int(structure[1])
    blocks = {
        "tensor": shape,
        "channel": (1, shape[1]),
        "group": (1, int(size or 0)),
        "tensor_group": (1, int(size or 0)),
    }
    if strategy not in blocks or 0 in blocks[strategy] or (ordered and strategy != "group"):
        raise ExportError(f"compressed-tensors with the strategy {strategy!r} is not read")
    return blocks[strategy]


def _values(
    source: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    overall: torch.Tensor | None,
    order: torch.Tensor | None,
    *,
    bits: int,
    shape: tuple[int, int],
    block: tuple[int, int],
    name: str,
) -> torch.Tensor:
    rows, columns = shape
    half = 1 << (bits - 1)
    if source.dtype == torch.int32:
        numbers = unpacking.unpack_bits(source, bits, columns).float() - half
    elif source.dtype == torch.uint8:
        numbers = unpacking.unpack_fp4(source)
    else:
        numbers = source.float()
    steps = unpacking.scale_values(scale)
    if overall is not None:
        steps = steps / overall.float()
    middle = None
    if zero is not None:
        if zero.dtype == torch.int32:  # packed along the outputs
            zero = (unpacking.unpack_bits(zero.T.contiguous(), bits, rows) - half).T
        middle = zero.float()
    if order is not None and bool((order >= 0).all()):
        columns_of = order.long()
        steps = steps[:, columns_of]
        middle = None if middle is None else middle[:, columns_of]
    else:
        steps = unpacking.spread(steps, shape, block, name)
        middle = None if middle is None else unpacking.spread(middle, shape, block, name)
    return (numbers if middle is None else numbers - middle) * steps
