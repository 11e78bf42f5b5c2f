"""What the benchmarks share: workloads, the machine's description, result files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from specplug.engines.native_ops import native_ops
from specplug.machine import describe_machine

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def workload(name: str) -> list[dict[str, str]]:
    """Prompts of ``workloads/NAME.jsonl``: id, category, prompt."""
    path = HERE / "workloads" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median with the quartiles."""
    ordered = sorted(values)
    low, middle, high = statistics.quantiles(ordered, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "n": len(ordered)}


def read_result(name: str) -> dict[str, Any] | None:
    """What ``results/NAME.json`` holds; None: it was not measured yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def machine() -> dict[str, Any]:
    """What figures were measured on."""
    return {**describe_machine(), "native_ops": native_ops() is not None}


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/NAME.json`` with the machine beside the figures."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **result}, indent=1) + "\n")
    return path
