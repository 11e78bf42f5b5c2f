"""Which precision suits this machine, and why."""

from __future__ import annotations

import platform
from pathlib import Path

from specplug.export.graphs import Precision

# Instructions that multiply int8 and add up in int32, by the names the kernel reports.
_INT8_PRODUCTS = ("avx512_vnni", "avx_vnni", "asimddp", "i8mm")


def choose_precision() -> tuple[Precision, str]:
    """The precision of ``--precision auto``, with the reason in one sentence."""
    found = [name for name in _INT8_PRODUCTS if name in _cpu_flags()]
    if found:
        return "w8a8", (
            f"w8a8, since this CPU has {found[0]}: checking eight tokens costs little more than "
            "one, at a tenth of int4's error"
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
