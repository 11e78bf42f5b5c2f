"""What each precision does to a graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from specplug.export.precision import Precision

if TYPE_CHECKING:
    from specplug.export.carried import CarriedBlocks

_IN_BLOCKS = ("int8", "int4", "gguf")
_ROUND_ACTIVATIONS = ("w8a8", *_IN_BLOCKS)


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
