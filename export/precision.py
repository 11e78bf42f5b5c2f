"""The precisions: what each does to a graph, and which one suits this machine."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from specplug.bundle import Dialect
from specplug.export.blocks import BLOCK_SIZE, Array, Blocks, Rounding, k_quant, nearest
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes import (
    DequantizeBlocks,
    GatherBlocks,
    HalfGraph,
    HalfWeights,
    PadAttention,
    QuantizeNBits,
    QuantizeW8A8,
)
from specplug.types import ExportError

if TYPE_CHECKING:
    from specplug.export.carried import CarriedBlocks

Precision = Literal["fp32", "fp16", "bf16", "w8a8", "int8", "int4", "gguf"]

_IN_BLOCKS = ("int8", "int4", "gguf")
_ROUND_ACTIVATIONS = ("w8a8", *_IN_BLOCKS)
_STANDARD = ("fp32", "fp16", "bf16", "int8", "int4")

# Instructions that multiply int8 and add up in int32, by the names the kernel reports.
_INT8_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


def apply_precision(
    model: Any,
    precision: Precision,
    *,
    dialect: Dialect = "ort",
    keep: Keep = keep_none,
    carried: CarriedBlocks | None = None,
    same_at_any_width: bool = True,
) -> None:
    """Round a fp32 graph's weights in place.

    Args:
        model: the graph.
        precision: what to round to.
        dialect: the graph's.
        keep: the layers that stay in fp32.
        carried: the source's own blocks, for ``"gguf"``.
        same_at_any_width: keep rounded activations from amplifying the last bit of a one-row
            attention, as the text of a model needs; a head's guesses do not.

    Raises:
        ExportError: a weight is beyond the precision's range.
    """
    standard = dialect == "standard"
    passes = _standard_passes(precision, keep) if standard else _passes(precision, keep, carried)
    for each in passes:  # not as ir.passes.Sequential, which hides what a pass has to say
        each(model)
    if same_at_any_width and not standard and precision in _ROUND_ACTIVATIONS:
        PadAttention()(model)


def _passes(precision: Precision, keep: Keep, carried: CarriedBlocks | None) -> tuple[Any, ...]:
    tables: Rounding = nearest
    match precision:
        case "fp32":
            return ()
        case "fp16" | "bf16":
            return (HalfWeights(precision, keep=keep),)
        case "w8a8":
            layers = QuantizeW8A8(keep=keep)
        case "int8":
            layers = QuantizeNBits(bits=8, rounding=nearest, keep=keep)
        case "int4":
            layers = QuantizeNBits(bits=4, rounding=_searched_in_4_bits, keep=keep)
        case "gguf":
            if carried is None:
                raise ValueError("precision gguf needs the file's blocks: give carried")
            layers = QuantizeNBits(rounding=carried.rounding, keep=keep)
            tables = carried.table_rounding
    return (layers, GatherBlocks(rounding=tables, keep=keep))


def _standard_passes(precision: Precision, keep: Keep) -> tuple[Any, ...]:
    match precision:
        case "fp16" | "bf16":
            return (HalfGraph(precision),)
        case "int8":
            return (DequantizeBlocks(bits=8, keep=keep),)
        case "int4":
            return (DequantizeBlocks(bits=4, keep=keep),)
    return ()


def check_dialect(precision: Precision, dialect: Dialect) -> None:
    """Refuse a precision that a dialect cannot express.

    Raises:
        ExportError: naming both.
    """
    if dialect == "standard" and precision not in _STANDARD:
        raise ExportError(
            f"precision {precision} has no place in the standard dialect: it has "
            f"{', '.join(_STANDARD)}"
        )


def fits_kernel(precision: Precision, shape: tuple[int, int]) -> bool:
    """Whether a matrix [K, N] can be rounded; blocks have to fill its columns."""
    return precision not in _IN_BLOCKS or shape[0] % BLOCK_SIZE == 0


def bytes_a_weight(precision: Precision, shape: tuple[int, int], *, is_head: bool) -> float:
    """Bytes that each weight of a matrix [K, N] takes in an integer precision, scales included."""
    scale = 4 / BLOCK_SIZE
    match precision:
        case "w8a8":
            return 1 + 4 / shape[0]
        case "int8":
            return 1 + scale
        case "int4":
            return 1 + scale if is_head else (4 + 4 / BLOCK_SIZE) / 8 + scale
    raise ValueError(f"{precision} is no precision of integers of one size")


def _searched_in_4_bits(weight: Array, bits: int) -> Blocks:
    """k-quant's search pays in 4 bits; the LM head's 8 need none."""
    return k_quant(weight, bits) if bits == 4 else nearest(weight, bits)


def choose_precision(dialect: Dialect = "ort") -> tuple[Precision, str]:
    """The precision of ``--precision auto``, with the reason in one sentence."""
    if dialect == "standard":
        return "fp32", "fp32, the reference; on a GPU --precision fp16 or bf16 is faster"
    flags = _cpu_flags()
    found = [name for name in _INT8_PRODUCTS if name in flags]
    if found:
        return "w8a8", (
            f"w8a8, since this CPU has {found[0]}: checking eight tokens costs little more than "
            "one, at a tenth of int4's error"
        )
    if not flags:
        return "fp32", (
            f"fp32, since {platform.system()} does not tell which instructions this CPU has; if it "
            "multiplies 8-bit integers (VNNI, or ARM's dot product), --precision w8a8 is faster"
        )
    return "fp32", (
        "fp32, since this CPU reports no 8-bit dot product "
        f"({', '.join(_INT8_PRODUCTS)}): integer kernels would be slow here"
    )


def _cpu_flags() -> set[str]:
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return {"asimddp"}  # every Apple core has it
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return set()
    lines = info.read_text().splitlines()
    return {
        flag
        for line in lines
        if line.startswith(("flags", "Features"))
        for flag in line.partition(":")[2].split()
    }
