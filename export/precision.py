"""The precisions: their names, which dialect has which, and which one suits this machine."""

from __future__ import annotations

import platform
from pathlib import Path

from specplug.bundle import Dialect, PrecisionName
from specplug.types import ExportError

Precision = PrecisionName

_STANDARD = ("fp32", "fp16", "bf16", "int8", "int4")

# Instructions that multiply int8 and add up in int32, by the names the kernel reports.
_INT8_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


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
