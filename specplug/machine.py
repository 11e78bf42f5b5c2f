"""What this machine is, for those who read a figure and those who keep one."""

from __future__ import annotations

import os
import platform
from datetime import date
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("specplug", "onnxruntime", "torch", "transformers", "tensorrt", "numpy")
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")


@cache
def _cpu() -> dict[str, str]:
    """Fields of the last core's entry; empty where the system does not say."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return dict(line.replace("\t", "").split(":", 1) for line in lines if ":" in line)


def cpu_name() -> str:
    """The processor's, as the system gives it."""
    return _cpu().get("model name", "").strip() or platform.processor() or platform.machine()


def cores() -> int:
    """How many this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def describe_machine() -> dict[str, Any]:
    """What a reader needs to judge a figure."""
    flags = (_cpu().get("flags") or _cpu().get("Features") or "").split()
    return {
        "cpu": cpu_name(),
        "cores": cores(),
        "instructions": [name for name in _INSTRUCTIONS if name in flags],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": date.today().isoformat(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
