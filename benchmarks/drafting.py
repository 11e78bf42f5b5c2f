"""The automatic drafter against plain decoding, by task group.

    .venv/bin/python benchmarks/drafting.py build/{fp32,w8a8,int4}.bundle [--temperature 0.8]

On each prompt plain decoding and the drafter take turns, in one process over one engine. A group's
figure is its tokens a second with the drafter over those without, prompts included; "decoding" is
the same of the time after the first token. Texts are compared on the way.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from measuring import HERE, machine, read_result, write_result
from specplug import Bundle, EngineOptions, SamplingParams
from specplug.bench.subjects import find_subjects, open_subjects
from specplug.bench.texts import PLAIN, Run, TextOptions, measure_texts
from specplug.bench.workload import read_workload
from specplug.cli.console import draft_tokens

WORKLOADS = ("specbench-dev", "own", "quoting")


def by_group(runs: list[Run], drafter: str) -> dict[str, dict[str, float]]:
    """Figures of each task group."""
    groups: dict[str, dict[str, float]] = {}
    for category in dict.fromkeys(run.item.category for run in runs):
        mine = [run for run in runs if run.item.category == category]
        plain, drafted = ([run for run in mine if run.drafter == name] for name in (PLAIN, drafter))
        groups[category] = {
            "over_plain": sum(r.seconds for r in plain) / sum(r.seconds for r in drafted),
            "decoding_over_plain": _decoding(plain) / _decoding(drafted),
            "plain_tokens_per_second": sum(r.new_tokens for r in plain)
            / sum(r.seconds for r in plain),
            "tokens_per_second": sum(r.new_tokens for r in drafted)
            / sum(r.seconds for r in drafted),
            "acceptance_length": sum(r.new_tokens - 1 for r in drafted)
            / max(sum(r.rounds for r in drafted), 1),
            "acceptance_by_position": _by_position([n for r in drafted for n in r.accepted]),
            "slowest_prompt": min(
                p.seconds / d.seconds for p, d in zip(plain, drafted, strict=True)
            ),
            "same_text": sum(r.same_text for r in drafted),
            "texts": len(drafted),
        }
    return groups


def _decoding(runs: list[Run]) -> float:
    return sum(run.seconds - run.first_token_seconds for run in runs) or 1e-9


def _by_position(accepted: list[int]) -> list[float]:
    """Of all rounds the share that accepted a first drafted token, a second one, …"""
    return [
        sum(n >= position for n in accepted) / len(accepted)
        for position in range(1, max(accepted, default=0) + 1)
    ]


def geometric_mean(groups: dict[str, dict[str, float]], figure: str) -> float:
    return math.exp(sum(math.log(group[figure]) for group in groups.values()) / len(groups))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+", type=Path)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS))
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--draft-tokens", type=draft_tokens, default="auto")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--name", default="drafting")
    arguments = parser.parse_args()
    options = TextOptions(
        drafters=(arguments.drafter,),
        draft_tokens=arguments.draft_tokens,
        max_tokens=arguments.tokens,
        repeats=arguments.repeats,
        sampling=SamplingParams(temperature=arguments.temperature, seed=1),
    )
    settings = {
        "drafter": arguments.drafter,
        "draft_tokens": arguments.draft_tokens,
        "temperature": arguments.temperature,
        "new_tokens": arguments.tokens,
        "repeats": arguments.repeats,
    }
    found: list[dict[str, Any]] = []
    for path in arguments.bundles:
        bundle = Bundle.open(path)
        subjects = find_subjects([bundle], [], [], EngineOptions())
        engines, _ = open_subjects(subjects)
        for name in arguments.workloads:
            items = read_workload(HERE / "workloads" / f"{name}.jsonl", arguments.limit)
            runs = measure_texts(engines, items, options, lambda: None)
            groups = by_group(runs, arguments.drafter)
            mean = geometric_mean(groups, "over_plain")
            decoding = geometric_mean(groups, "decoding_over_plain")
            precision, draft = bundle.manifest.target.precision, bundle.manifest.draft
            print(f"{precision}, {name}: {mean:.2f} over plain ({decoding:.2f} decoding)")
            for group, figures in groups.items():
                print(
                    f"  {group:15} {figures['over_plain']:5.2f} "
                    f"({figures['decoding_over_plain']:.2f}), acceptance length "
                    f"{figures['acceptance_length']:.2f}, {figures['tokens_per_second']:.0f} "
                    f"tokens/s, slowest {figures['slowest_prompt']:.2f}, same text "
                    f"{figures['same_text']:.0f} of {figures['texts']:.0f}",
                    flush=True,
                )
            found.append(
                {
                    "precision": precision,
                    "draft": draft.architecture if draft else None,
                    "workload": name,
                    "machine": machine(),
                    "geometric_mean_over_plain": mean,
                    "geometric_mean_decoding_over_plain": decoding,
                    "groups": groups,
                }
            )
        for engine in engines.values():
            engine.close()
    kept = _others(arguments.name, settings, found)
    print(write_result(arguments.name, {**settings, "runs": [*kept, *found]}))


def _others(name: str, settings: dict[str, Any], new: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Earlier runs of the same settings, but for those that were made anew."""
    before = read_result(name)
    if before is None or any(before.get(key, "auto") != value for key, value in settings.items()):
        return []
    made = {(run["precision"], run["workload"]) for run in new}
    return [run for run in before["runs"] if (run["precision"], run["workload"]) not in made]


if __name__ == "__main__":
    main()
