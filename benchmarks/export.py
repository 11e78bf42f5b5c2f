"""Time and peak memory of an export, by precision, each in a process of its own.

.venv/bin/python benchmarks/export.py SOURCE [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import spread, write_result
from specplug import Bundle

PRECISIONS = ("fp32", "w8a8", "int4")


def export(source: Path, bundle: Path, precision: str) -> tuple[float, float]:
    """Seconds, and the process's peak resident memory in MB."""
    command = [sys.executable, "-m", "specplug", "export", str(source), "-o", str(bundle)]
    started = time.perf_counter()
    with subprocess.Popen(
        [*command, "--precision", precision, "--force"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"exporting {source} in {precision} failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    memory: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    runs = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "made.bundle"
        for _ in range(arguments.repeats):
            for precision in PRECISIONS:
                took, peak = export(arguments.source, bundle, precision)
                seconds[precision].append(took)
                memory[precision].append(peak)
                target = Bundle.open(bundle).manifest.target
                runs[precision] = {
                    "quality": target.quality.model_dump() if target.quality else None,
                    "parity": target.parity.model_dump(),
                    "min_width": target.min_width,
                    "megabytes": sum(file.bytes for file in target.files) / 1e6,
                    "parameters": target.parameters,
                }
    for precision, run in runs.items():
        run["seconds"] = spread(seconds[precision])
        run["peak_megabytes"] = spread(memory[precision])
        print(
            f"{precision}: {run['seconds']['median']:.1f} s, "
            f"peak {run['peak_megabytes']['median']:.0f} MB, "
            f"{run['peak_megabytes']['median'] * 1e6 / (4 * run['parameters']):.2f} times "
            "the fp32 weights"
        )
    print(write_result("export", {"source": arguments.source.name, "runs": runs}))


if __name__ == "__main__":
    main()
