"""specplug beside its peers: the same weights, prompts (as token ids) and lengths, taking turns.

    benchmarks/peers/setup.sh
    .venv/bin/python benchmarks/race.py WEIGHTS BUNDLE... --alone      # memory and quality of each
    .venv/bin/python benchmarks/race.py WEIGHTS BUNDLE... [--prompts N]
    .venv/bin/python benchmarks/race.py WEIGHTS BUNDLE... --first-token
    .venv/bin/python benchmarks/race.py TARGET PAIR.bundle --draft DRAFT --workload code

Every answer is kept in .peers/race_NAME.jsonl as it is made, and the same command goes on where
it stopped; --prompts N handles N more prompts. When all are answered, or with --report, the tables
are written to results/race_NAME.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from measuring import workload, write_result
from racing.records import Records
from racing.report import first_tokens, report
from racing.running import Prompt, Race
from racing.systems import PEERS, ROOT, System, pair, smollm
from racing.workers import Worker, WorkerError
from specplug import Bundle
from specplug.machine import cores

LENGTHS = (50, 500, 2000)
"""Tokens of the prompts of --first-token."""


def main() -> None:
    arguments = _arguments()
    name = arguments.name or ("first_token" if arguments.first_token else arguments.workload)
    race = _race(arguments, name)
    if arguments.alone:
        race.look_at_each(PEERS, print)
    elif not arguments.report:
        race.run(arguments.prompts, partial(print, flush=True))
    left = race.left()
    if left and not arguments.report:
        print(f"{len(left)} of {len(race.prompts)} prompts left: run this again to go on")
        return
    answers = race.records.of("answer")
    tables = (
        {"first_token": first_tokens(race.systems, answers)}
        if arguments.first_token
        else report(race.systems, answers, race.alone.of("alone"), race.max_tokens)
    )
    result = {
        "weights": arguments.weights.name,
        "draft": arguments.draft and arguments.draft.name,
        "workload": arguments.workload,
        "new_tokens": race.max_tokens,
        "threads": arguments.threads,
        "prompts_of_slow_systems_a_group": arguments.slow_prompts,
        "peer_versions": {r["system"]: r["versions"] for r in race.records.of("worker")},
    }
    print_tables(tables)
    print(write_result(f"race_{name}", {**result, **tables}))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("weights", type=Path, help="what specplug pull prints")
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--draft", type=Path, help="the draft model's weights: race of a pair")
    parser.add_argument("--workload", default="specbench-dev")
    parser.add_argument("--systems", nargs="+", help="only those whose names begin so")
    parser.add_argument("--limit-per-group", type=int, help="prompts of each task group")
    parser.add_argument("--slow-prompts", type=int, default=2, help="the same for slow systems")
    parser.add_argument("--tokens", type=int, default=128, help="new ones, a prompt")
    parser.add_argument("--threads", type=int, default=cores())
    parser.add_argument("--prompts", type=int, help="how many to handle before stopping")
    parser.add_argument("--repeats", type=int, default=5, help="of --first-token, a length")
    parser.add_argument("--quality-tokens", type=int, help="of the held-out text; all by default")
    parser.add_argument("--alone", action="store_true", help="memory and quality, one by one")
    parser.add_argument("--first-token", action="store_true", help="time to it, by prompt length")
    parser.add_argument("--report", action="store_true", help="of what there is; measures nothing")
    parser.add_argument("--name", help="of records and result; the workload's by default")
    return parser.parse_args()


def _race(arguments: argparse.Namespace, name: str) -> Race:
    tokenizer = Bundle.open(arguments.bundles[0]).tokenizer()
    sample = tokenizer.encode((ROOT / "export/sample.txt").read_text(encoding="utf-8"))
    prompts = [
        Prompt(item["id"], item["category"], tokenizer.encode_prompt(item["prompt"]))
        for item in workload(arguments.workload)
    ]
    if arguments.first_token:
        prompts = _of_lengths(prompts, arguments.repeats)
    elif arguments.limit_per_group:
        prompts = _limited(prompts, arguments.limit_per_group)
    max_tokens = 1 if arguments.first_token else arguments.tokens
    settings = {
        "weights": arguments.weights.name,
        "workload": arguments.workload,
        "max_tokens": max_tokens,
        "threads": arguments.threads,
    }
    settings_alone = {
        "weights": arguments.weights.name,
        "threads": arguments.threads,
        "quality_tokens": arguments.quality_tokens,
    }
    return Race(
        systems=_systems(arguments),
        prompts=prompts,
        records=Records(PEERS / f"race_{name}.jsonl", settings),
        alone=Records(PEERS / f"race_alone_{arguments.weights.stem}.jsonl", settings_alone),
        max_tokens=max_tokens,
        few=arguments.slow_prompts,
        sample=sample[: arguments.quality_tokens],
        start=partial(
            Worker,
            threads=arguments.threads,
            stop=[*tokenizer.stop_token_ids],
            log=PEERS / f"race_{name}.log",
        ),
    )


def _systems(arguments: argparse.Namespace) -> list[System]:
    if arguments.draft:
        everyone = pair(arguments.weights, arguments.draft, arguments.bundles)
    else:
        everyone = smollm(arguments.weights, arguments.bundles)
    chosen = tuple(arguments.systems or ("",))
    systems = [system for system in everyone if system.name.startswith(chosen)]
    if arguments.first_token:
        systems = [system for system in systems if system.plain is None]
    unready = [system.name for system in systems if not system.ready]
    if unready:
        raise SystemExit(
            f"not set up: {', '.join(unready)}; run benchmarks/peers/setup.sh, or name others "
            "with --systems"
        )
    return systems


def _limited(prompts: list[Prompt], most: int) -> list[Prompt]:
    taken: dict[str, int] = {}
    kept = []
    for prompt in prompts:
        taken[prompt.group] = taken.get(prompt.group, 0) + 1
        if taken[prompt.group] <= most:
            kept.append(prompt)
    return kept


def _of_lengths(prompts: list[Prompt], repeats: int) -> list[Prompt]:
    """Prompts of LENGTHS tokens out of the workload's text, each time of another part."""
    text = [token for prompt in prompts for token in prompt.token_ids]
    while len(text) < repeats * sum(LENGTHS):
        text += text
    made = []
    for repeat in range(repeats):
        for length in LENGTHS:
            cut, text = text[:length], text[length:]
            made.append(Prompt(f"{length}-{repeat}", str(length), cut))
    return made


def print_tables(tables: dict[str, Any]) -> None:
    for length, row in tables.get("first_token", {}).items():
        for name, found in row["systems"].items():
            print(f"{length:>5} {name:24} {1000 * found['median_seconds']:8.1f} ms"
                  f"  {found['over_best_peer'] or 0:.2f} of {row['best_peer']}")  # fmt: skip
    for name, found in tables.get("systems", {}).items():
        speeds = "  ".join(f"{g} {f['tokens_per_second']:.0f}" for g, f in found["groups"].items())
        line = f"{name:24} {found['all']['tokens_per_second']:6.1f} tokens/s ({speeds})"
        if over := found.get("over_plain"):
            line += f"; {over['all']:.2f} over plain"
            line += f", same text {over['same_text']} of {over['texts']}"
        if found["quality"]:
            line += f"; KL {found['quality']['mean_kl']:.4f}"
        print(line)
    for group, row in tables.get("against_best_peer", {}).get("groups", {}).items():
        ours = row.get("specplug", {"system": "none of its quality", "tokens_per_second": 0})
        print(
            f"{group:15} {row['peer']} {row['tokens_per_second']:.0f}, {ours['system']}"
            f" {ours['tokens_per_second']:.0f}: {row.get('ratio', 0):.2f}"
        )


if __name__ == "__main__":
    try:
        main()
    except (WorkerError, ValueError) as error:
        raise SystemExit(str(error)) from error
