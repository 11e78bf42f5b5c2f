"""ONNX Runtime's session options, one changed at a time: what each does to a call.

    .venv/bin/python benchmarks/session_options.py BUNDLE...

Sessions of all settings are open at once, over one pool of threads, and take turns; the order
rotates, since whoever comes after a large call finds the processor's cache full of its weights.
The first session of a process takes part and is not reported: by where its weights come to lie it
is up to a fifth slower in w8a8 than those after it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from measuring import write_result
from specplug import Bundle, SpeculativeDecoder, Step

REPEATS, PAST = 64, 200

Change = Callable[[Any], None]


def attribute(name: str, value: Any) -> Change:
    return lambda options: setattr(options, name, value)


FIRST, AS_IT_IS = "first opened", "as it is"
SETTINGS: dict[str, Change] = {
    FIRST: lambda options: None,
    AS_IT_IS: lambda options: None,
    "no memory arena": attribute("enable_cpu_mem_arena", False),
    "no memory pattern": attribute("enable_mem_pattern", False),
    "no memory reuse": attribute("enable_mem_reuse", False),
    "fewer optimizations": attribute(
        "graph_optimization_level", onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ),
    "denormals as zero": lambda options: options.add_session_config_entry(
        "session.set_denormal_as_zero", "1"
    ),
    "by priority": attribute("execution_order", onnxruntime.ExecutionOrder.PRIORITY_BASED),
}


def opened(path: Path, change: Change) -> SpeculativeDecoder:
    made = onnxruntime.SessionOptions

    def changed() -> Any:
        options = made()
        change(options)
        return options

    onnxruntime.SessionOptions = changed
    try:
        return SpeculativeDecoder.from_bundle(path, drafter="none", share_threads=True)
    finally:
        onnxruntime.SessionOptions = made


def measure(path: Path) -> dict[str, dict[str, float]]:
    """By setting and width: the median over that of the settings as they are."""
    decoders = {name: opened(path, change) for name, change in SETTINGS.items()}
    names = [*decoders]
    tokens = np.random.default_rng(0).integers(0, 1000, size=(1, PAST))
    taken: dict[tuple[str, int], list[float]] = {}
    least = decoders[names[0]].target.spec.min_width
    for decoder in decoders.values():
        decoder.target.forward(Step(tokens=tokens, past=np.array([0]), scores_from=PAST - 1))
    for width in (least, 8):
        for repeat in range(REPEATS):
            turn = repeat % len(names)
            for name in names[turn:] + names[:turn]:
                step = Step(tokens=tokens[:, :width], past=np.array([PAST]))
                started = time.perf_counter()
                decoders[name].target.forward(step)
                taken.setdefault((name, width), []).append(time.perf_counter() - started)
    for decoder in decoders.values():
        decoder.close()
    medians = {key: statistics.median(values) for key, values in taken.items()}
    return {
        name: {str(width): medians[name, width] / medians[AS_IT_IS, width] for width in (least, 8)}
        for name in names
        if name != FIRST
    }


def main() -> None:
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    found = {}
    for path in map(Path, sys.argv[1:]):
        precision = Bundle.open(path).manifest.target.precision
        found[precision] = measure(path)
        print(precision, found[precision], flush=True)
    print(write_result("session_options", {"over_as_it_is": found}))


if __name__ == "__main__":
    main()
