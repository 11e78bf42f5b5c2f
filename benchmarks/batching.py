"""Many streams at once: one batch with and without speculation, against one after another.

    .venv/bin/python benchmarks/batching.py build/{fp32,w8a8,int4}.bundle

Of each load so many requests are always under way; when one ends, the next begins. All systems
answer the same prompts over one engine in one process and take turns; a drafter begins anew every
time, so that none has seen the texts before. Texts are compared with those of plain decoding alone.
Figures are new tokens a second, prompts included, for as long as that many are under way.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from measuring import HERE, write_result
from specplug import BatchDecoder, SpeculativeDecoder
from specplug.bench.workload import read_workload
from specplug.history import History
from specplug.opening import make_drafter

LOADS = (1, 2, 4, 8, 16)
Answers = list[list[int]]
Run = tuple[Answers, float]
"""The answers, and new tokens a second."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--longest-prompt", type=int, default=800, help="in characters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loads", type=int, nargs="+", default=LOADS)
    parser.add_argument("--name", default="batching")
    options = parser.parse_args()
    everything = read_workload(HERE / "workloads" / "specbench-dev.jsonl", 1 << 10)
    items = [item for item in everything if len(item.prompt) <= options.longest_prompt]
    items = items[: options.prompts]
    result: dict[str, Any] = {
        "tokens": options.tokens,
        "prompts": len(items),
        "longest_prompt": options.longest_prompt,
        "repeats": options.repeats,
        "bundles": {},
    }
    for bundle in options.bundles:
        print(bundle.stem)
        measured = measure(
            bundle,
            [item.prompt for item in items],
            tokens=options.tokens,
            loads=options.loads,
            repeats=options.repeats,
        )
        result["bundles"][bundle.stem] = measured
        report(measured)
    print(write_result(options.name, result))


def measure(
    bundle: Path, prompts: Sequence[str], *, tokens: int, loads: Sequence[int], repeats: int
) -> dict[str, Any]:
    """Tokens a second by load and system, of every repeat."""
    speeds: dict[str, dict[str, list[float]]] = {}
    shared = BatchDecoder.from_bundle(bundle, max_batch=max(loads), drafter="auto")
    shared.prepare()
    asked = [shared.encode(prompt) for prompt in prompts]
    parts: dict[str, Any] = {"tokenizer": shared.tokenizer}

    def drafter() -> Any:
        return make_drafter("auto", history=History(0))

    def alone(speculation: bool) -> Run:
        costs = shared._lengths[1].costs if 1 in shared._lengths else None
        decoder = SpeculativeDecoder(
            shared.target, drafter=drafter() if speculation else None, costs=costs, **parts
        )
        started = time.perf_counter()
        answers = [
            [token.id for token in decoder.stream(prompt, max_tokens=tokens)] for prompt in asked
        ]
        return answers, sum(map(len, answers)) / (time.perf_counter() - started)

    def together(load: int, speculation: bool) -> Run:
        decoder = BatchDecoder(
            shared.target,
            drafter=drafter() if speculation else None,
            batch_costs=shared._batch_costs,
            **parts,
        )
        answers: dict[Any, list[int]] = {}
        left = iter(asked)
        started, speed = time.perf_counter(), 0.0
        while True:
            while decoder.running + decoder.waiting < load and (prompt := next(left, None)):
                answers[decoder.submit(prompt, max_tokens=tokens)] = []
            if not speed and decoder.running + decoder.waiting < load:
                speed = sum(map(len, answers.values())) / (time.perf_counter() - started)
            if decoder.idle:
                return [*answers.values()], speed
            for generation, made in decoder.step():
                if generation.error:
                    raise generation.error
                answers[generation] += [token.id for token in made]

    systems: dict[tuple[str, str], Callable[[], Run]] = {
        ("alone", "plain"): lambda: alone(False),
        ("alone", "auto"): lambda: alone(True),
    }
    for load in loads:
        systems[str(load), "plain"] = lambda load=load: together(load, False)
        systems[str(load), "auto"] = lambda load=load: together(load, True)
    expected = alone(False)[0]
    same = 0
    for repeat in range(repeats):
        for (load, name), run in systems.items():
            answers, speed = run()
            same += answers == expected
            speeds.setdefault(load, {}).setdefault(name, []).append(speed)
        print(f"  {repeat + 1} of {repeats}", flush=True)
    shared.close()
    return {"speeds": speeds, "same_texts": same, "runs": repeats * len(systems)}


def report(measured: dict[str, Any]) -> None:
    """A table of medians."""
    speeds = measured["speeds"]
    base = {name: statistics.median(runs) for name, runs in speeds["alone"].items()}
    for load, systems in speeds.items():
        plain, auto = (statistics.median(systems[name]) for name in ("plain", "auto"))
        ratio = statistics.median(
            a / p for a, p in zip(systems["auto"], systems["plain"], strict=True)
        )
        print(
            f"  {load:>5}: plain {plain:6.1f}, auto {auto:6.1f} tokens/s, auto over plain "
            f"{ratio:.2f}; over one after another: {auto / base['auto']:.2f} (auto), "
            f"{auto / base['plain']:.2f} (plain)"
        )
    print(f"  texts the same in {measured['same_texts']} of {measured['runs']} runs")


if __name__ == "__main__":
    main()
