"""The machine: its energy, and what an engine takes of its memory."""

from __future__ import annotations

import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from specplug.bench.subjects import Subject
from specplug.types import Step


class EnergyMeter:
    """The processor's own energy counters (Linux, RAPL), where it lets this user read them."""

    def __init__(self, root: Path = Path("/sys/class/powercap")) -> None:
        counters = [
            path for path in root.glob("intel-rapl:?/energy_uj") if os.access(path, os.R_OK)
        ]
        self._counters = [(path, _read(path.parent / "max_energy_range_uj")) for path in counters]

    @property
    def is_there(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._counters)

    def read(self) -> list[int]:
        """Where the counters stand."""
        return [_read(path) for path, _ in self._counters]

    def joules(self, before: list[int]) -> float | None:
        """Since then, of all packages; None: there is nothing to read."""
        if not self._counters:
            return None
        pairs = zip(self._counters, before, strict=True)
        return sum((_read(path) - start) % (most + 1) for (path, most), start in pairs) / 1e6


def _read(path: Path) -> int:
    return int(path.read_text())


@dataclass(frozen=True, slots=True)
class Footprint:
    """What it takes to have an engine ready, in a process of its own."""

    start_seconds: float
    """From nothing loaded to the first token's scores, files in the page cache."""
    memory_bytes: int
    """Resident more than before: weights, cache, libraries."""


def measure_footprint(subject: Subject) -> Footprint:
    """Load a subject in a new process, and run one call; twice, of which the quicker counts."""
    return min((_in_new_process(subject) for _ in range(2)), key=lambda each: each.start_seconds)


def _in_new_process(subject: Subject) -> Footprint:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_load, args=(subject, sender))
    process.start()
    sender.close()
    try:
        seconds, memory = receiver.recv()
    finally:
        process.join()
    return Footprint(seconds, memory)


def _load(subject: Subject, sender: Any) -> None:
    before, started = _resident_bytes(), time.perf_counter()
    engine = subject.open()
    width = engine.spec.min_width
    tokens = np.zeros((1, width), dtype=np.int64)
    engine.forward(Step(tokens=tokens, past=np.array([0]))).argmax()
    sender.send((time.perf_counter() - started, _resident_bytes() - before))


def _resident_bytes() -> int:
    """Of this process, also what it maps of files."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS: bytes, the most so far
