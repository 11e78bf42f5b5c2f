"""What the benchmarks share: workloads, the machine's description, result files."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Iterable
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from specplug.engines.ort_session import physical_cores

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def workload(name: str) -> list[dict[str, str]]:
    """Prompts of ``workloads/NAME.jsonl``: id, category, prompt."""
    path = HERE / "workloads" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def machine() -> dict[str, Any]:
    """What a reader needs to judge a figure."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    flags = next((line.split(":")[1].split() for line in lines if line.startswith("flags")), [])
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    return {
        "cpu": model or platform.processor(),
        "physical_cores": physical_cores(),
        "instructions": [flag for flag in flags if flag in ("avx2", "avx512f", "avx512_vnni")],
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("specplug", "onnxruntime", "numpy")},
        "date": date.today().isoformat(),
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median with the quartiles."""
    ordered = sorted(values)
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "n": len(ordered)}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/NAME.json`` with the machine beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path
