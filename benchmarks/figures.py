"""The tables of the documents, written out of the result files.

    .venv/bin/python benchmarks/figures.py           # write them
    .venv/bin/python benchmarks/figures.py --check   # fail if a document says something else

In a document a table stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``; NAME is a
function below, which makes it of files in ``results/``.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from measuring import HERE, read_result
from speculation import PLAIN_W8A8

ROOT = HERE.parent
DOCUMENTS = (
    "README.md",
    "docs/BENCHMARKS.md",
    "docs/BATCHING.md",
    "docs/SERVING.md",
    "docs/SECURITY.md",
)
_BLOCK = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_PRECISIONS = ("fp32", "fp16", "w8a8", "int8", "gguf", "int4")

Table = Callable[[], str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="change nothing")
    check = parser.parse_args().check
    for name in DOCUMENTS:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = fill(before)
        if after == before:
            continue
        if check:
            raise SystemExit(
                f"{name} has other figures than benchmarks/results: run benchmarks/figures.py"
            )
        path.write_text(after, encoding="utf-8")
        print(name)


def fill(text: str) -> str:
    """A document with its tables made anew.

    Raises:
        ValueError: it asks for a table that is none of :data:`TABLES`.
    """

    def table(found: re.Match[str]) -> str:
        begin, name, end = found.groups()
        if name not in TABLES:
            raise ValueError(f"figures: {name}: there are {', '.join(sorted(TABLES))}")
        return f"{begin}{TABLES[name]()}\n{end}"

    return _BLOCK.sub(table, text)


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; None is an empty cell."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join('' if c is None else str(c) for c in row)} |" for row in lines)


def result(name: str) -> dict[str, Any]:
    found = read_result(name)
    if found is None:
        raise SystemExit(
            f"results/{name}.json is not there: benchmarks/README.md says what makes it"
        )
    return found


# --- precisions -------------------------------------------------------------------------------


def precisions() -> str:
    """What each precision takes, how near it is to its source, and what its calls cost."""
    quality, costs = result("precisions")["runs"], result("costs")["call_milliseconds"]
    plain = costs.get(PLAIN_W8A8)
    rows = []
    for name in _PRECISIONS:
        if name not in quality:
            continue
        run, found = quality[name], quality[name]["quality"]
        rows.append(
            [
                name,
                f"{run['megabytes']:.0f}",
                _kl(found["mean_kl"]),
                f"{found['top1_agreement']:.0%}",
                f"{run['perplexity_ratio']:.3f}",
                run["min_width"],
                _milliseconds(costs.get(name)),
            ]
        )
        if name == "w8a8" and plain:
            rows.append([PLAIN_W8A8, *["the same"] * 5, _milliseconds(plain)])
    head = ["", "MB", "KL to the source", "top-1", "perplexity", "exact from width"]
    return markdown([*head, "ms a call of 1 / 4 / 8 / 16 tokens"], rows)


def _milliseconds(costs: dict[str, Any] | None) -> str | None:
    return costs and " / ".join(f"{costs[width]['median']:.1f}" for width in ("1", "4", "8", "16"))


def exporting() -> str:
    """Seconds and memory of exports."""
    runs = result("export")["runs"]
    return markdown(
        ["export", *runs],
        [
            ["seconds", *(f"{run['seconds']['median']:.0f}" for run in runs.values())],
            ["peak MB", *(f"{run['peak_megabytes']['median']:.0f}" for run in runs.values())],
        ],
    )


# --- the same text ----------------------------------------------------------------------------


def identity() -> str:
    """Answers that changed under speculation."""
    rows = []
    for file, what in (("identity", "greedy"), ("identity_sampled", "sampled")):
        for run in result(file)["runs"]:
            pairs = run["against_plain"]
            changed = sum(len(pair["differing"]) for pair in pairs)
            label = what if what == "greedy" else f"T = {run['temperature']:g}"
            drafters = " and ".join(dict.fromkeys(pair["drafter"] for pair in pairs))
            answers = sum(pair["answers"] for pair in pairs)
            rows.append([run["precision"], label, drafters, f"{changed} of {answers}"])
    return markdown(["", "", "drafters", "answers that changed"], rows)


# --- drafting ---------------------------------------------------------------------------------

_WORKLOADS = {
    "specbench-dev": "Spec-Bench (60 prompts, six groups)",
    "own": "sixty prompts of our own, six groups",
    "quoting": "quoting",
}


def drafting() -> str:
    """The automatic drafter over plain decoding, by precision."""
    runs = {(r["workload"], r["precision"]): r for r in result("drafting")["runs"]}
    columns = [name for name in _PRECISIONS if ("own", name) in runs]
    rows = [
        [label, *(_over(runs[workload, name]) for name in columns)]
        for workload, label in _WORKLOADS.items()
    ]
    for workload in ("specbench-dev", "own"):
        for group in runs[workload, columns[0]]["groups"]:
            cells = [_over_in(runs[workload, name]["groups"][group]) for name in columns]
            rows.append([f"{_WORKLOADS[workload].split(' (')[0].split(',')[0]}: {group}", *cells])
    texts = [g for run in runs.values() for g in run["groups"].values()]
    same, total = (sum(g[key] for g in texts) for key in ("same_text", "texts"))
    table = markdown(["", *columns], rows)
    return f"{table}\n\n{same} of {total} texts equal plain decoding's."


def _over(run: dict[str, Any]) -> str:
    return (
        f"{run['geometric_mean_over_plain']:.2f} ({run['geometric_mean_decoding_over_plain']:.2f})"
    )


def _over_in(group: dict[str, Any]) -> str:
    return f"{group['over_plain']:.2f} ({group['decoding_over_plain']:.2f})"


def own_time() -> str:
    """What of a generation is not spent in ONNX Runtime."""
    runs = result("speculation_quoting_auto")["runs"]
    rows = [
        [run["precision"], *(f"{k['own_time_share']:.1%}" for k in run["by_draft_tokens"].values())]
        for run in runs
    ]
    return markdown(["outside ONNX Runtime", *_lengths(runs[0])], rows)


def _lengths(run: dict[str, Any]) -> list[str]:
    return ["plain" if k == "0" else f"`auto`, k = {k}" for k in run["by_draft_tokens"]]


def acceptance() -> str:
    """Acceptance rules: tokens a round, and the rate."""
    rules = result("acceptance")["rules"]
    names = list(dict.fromkeys(rule["acceptance"] for rule in rules))
    rows = []
    for temperature in dict.fromkeys(rule["temperature"] for rule in rules):
        mine = {r["acceptance"]: r for r in rules if r["temperature"] == temperature}
        cells = [
            f"{mine[n]['acceptance_length']:.2f} ({mine[n]['acceptance_rate']:.2f})" for n in names
        ]
        rows.append([f"T = {temperature}: acceptance length (rate)", *cells])
    return markdown(["", *names], rows)


def sampling() -> str:
    """What choosing a token costs."""
    settings = {
        name: found for name, found in result("sampling")["settings"].items() if "," not in name
    }
    tools = list(dict.fromkeys(tool for found in settings.values() for tool in found))
    rows = [[tool, *(_median(found.get(tool)) for found in settings.values())] for tool in tools]
    return markdown(["ms a row", *settings], rows)


def _median(found: dict[str, float] | None) -> str | None:
    return found and f"{found['median']:.2f}"


def lookup() -> str:
    """Looking up in a long history."""
    found = result("lookup")
    return (
        f"Looking up a committed token in {found['history_tokens']:,} tokens of history and the "
        f"text takes {found['microseconds_a_committed_token']['median']:.0f} µs, a drafted one "
        f"{found['microseconds_a_drafted_token']:.0f} µs."
    )


# --- the race ---------------------------------------------------------------------------------


_RACES = {"race_specbench-dev": "Spec-Bench", "race_own": "own", "race_quoting": "quoting"}


def race() -> str:
    """Our fastest configuration of no less quality beside the fastest peer, by task group."""
    rows = []
    for name, label in _RACES.items():
        for group, row in result(name)["against_best_peer"]["groups"].items():
            ours = row.get("specplug")
            rows.append(
                [
                    f"{label}: {group}" if group != label else label,
                    f"{row['peer']}, {_quality(row)}",
                    f"{row['tokens_per_second']:.0f}",
                    ours and f"{ours['system'].removeprefix('specplug ')}, {_quality(ours)}",
                    ours and f"{ours['tokens_per_second']:.0f}",
                    ours and f"**{row['ratio']:.2f}**",
                ]
            )
    head = ["", "fastest peer", "tokens/s", "specplug of no less quality", "tokens/s", "ratio"]
    return markdown(head, rows)


def race_each() -> str:
    """The same for every peer: how many times as fast we are, and in which precision."""
    return _each("race_specbench-dev")


def race_each_own() -> str:
    """Likewise on our own prompts."""
    return _each("race_own")


def _each(name: str) -> str:
    table = result(name)["against_each_peer"]
    groups = list(dict.fromkeys(group for rows in table.values() for group in rows))
    rows = []
    for peer, found in table.items():
        quality = next((_quality(row) for row in found.values()), "")
        cells = [_ratio(found.get(group)) for group in groups]
        rows.append([f"{peer}, {quality}", *cells])
    return markdown(["peer, at its fastest", *groups], rows)


def _ratio(row: dict[str, Any] | None) -> str | None:
    if row is None or "ratio" not in row:
        return None
    return f"{row['ratio']:.2f} ({row['specplug']['system'].removeprefix('specplug ')})"


def race_systems() -> str:
    """Every system: quality, speed, what its speculation does to speed and text, memory."""
    return _systems("race_specbench-dev")


def race_systems_own() -> str:
    """The same on our own prompts."""
    return _systems("race_own")


def race_quoting() -> str:
    """The same on prompts whose answers quote them."""
    return _systems("race_quoting")


def pair() -> str:
    """The same for the pair of code models."""
    return _systems("race_qwen")


def _systems(name: str) -> str:
    systems = result(name)["systems"]
    rows = []
    for label, found in systems.items():
        over, memory = found.get("over_plain"), found["memory_bytes"]
        rows.append(
            [
                label,
                found["quality"] and _kl(found["quality"]["mean_kl"]),
                f"{found['all']['tokens_per_second']:.0f}",
                f"{found['all']['decoding_tokens_per_second']:.0f}",
                over and f"{over['all']:.2f}",
                over and f"{over['same_text']} of {over['texts']}",
                memory and f"{memory['pss'] / 1e6:.0f} / {memory['peak_rss'] / 1e6:.0f}",
            ]
        )
    head = ["", "KL to fp32", "tokens/s", "after the first token", "over its own plain"]
    return markdown([*head, "texts equal to its plain", "MB held / at most"], rows)


def first_token() -> str:
    """Milliseconds to the first token."""
    table = result("race_first_token")["first_token"]
    names = list(dict.fromkeys(name for row in table.values() for name in row["systems"]))
    rows = [[name, *(_first(row["systems"].get(name)) for row in table.values())] for name in names]
    return markdown(["", *(f"{length} tokens" for length in table)], rows)


def native() -> str:
    """The C++ runtime beside the Python package and a bare session."""
    rows = []
    for bundle, found in result("native")["bundles"].items():
        for name, speed in found.get("speed", {}).items():
            cpp, python = (
                speed[f"{language}_tokens_per_second"]["median"] for language in ("cpp", "python")
            )
            ratio, outside = speed["cpp_over_python"], speed["outside_the_engine"]
            cells = [f"{cpp:.0f}", f"{python:.0f}", f"{ratio['median']:.2f}"]
            rows.append([f"{bundle}, {name}", *cells, f"{outside['median']:.1%}"])
    head = ["", "C++ tokens/s", "Python", "ratio", "of C++'s time, outside ONNX Runtime"]
    sizes = [
        [
            bundle,
            f"{found['startup']['specplug_over_bare']['median']:.2f}",
            f"{found['memory']['specplug_over_bare']['median']:.2f}",
        ]
        for bundle, found in result("native")["bundles"].items()
    ]
    beside = markdown(["C++ over a bare session", "to the first token", "resident memory"], sizes)
    return f"{markdown(head, rows)}\n\n{beside}"


def _first(found: dict[str, float] | None) -> str | None:
    if found is None:
        return None
    return f"{1000 * found['median_seconds']:.0f} ms ({found['over_best_peer']:.2f})"


def _quality(row: dict[str, Any]) -> str:
    return f"KL {_kl(row['mean_kl'])}" if row["mean_kl"] is not None else "KL unknown"


def _kl(nats: float) -> str:
    return "0" if nats < 5e-7 else f"{nats:.{max(3, 1 - math.floor(math.log10(nats)))}f}"


def batching() -> str:
    """Many streams at once, against one after another."""
    rows = []
    for precision, measured in result("batching")["bundles"].items():
        speeds = measured["speeds"]
        before = statistics.median(speeds["alone"]["auto"])
        for load, systems in speeds.items():
            plain, auto = (statistics.median(systems[name]) for name in ("plain", "auto"))
            pairs = zip(systems["auto"], systems["plain"], strict=True)
            rows.append(
                [
                    precision,
                    "one after another" if load == "alone" else f"{load} at a time",
                    f"{plain:.0f}",
                    f"{auto:.0f}",
                    f"{statistics.median(a / p for a, p in pairs):.2f}",
                    f"{auto / before:.2f}",
                ]
            )
    return markdown(
        ["", "", "plain", "`auto`", "auto over plain", "auto over one after another"], rows
    )


def serving_load() -> str:
    """Streams over HTTP, by load: medians over the repeats."""
    rows = []
    for load, systems in result("serving_load")["loads"].items():
        found = {
            name: {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            for name, runs in systems.items()
        }
        rows.append(
            [load, *(f"{found[name]['tokens_per_second']:.0f}" for name in ("plain", "auto"))]
        )
        for what in ("first_token", "inter_token"):
            rows[-1] += (
                f"{1000 * one[f'{what}_p50']:.0f} / {1000 * one[f'{what}_p95']:.0f}"
                for one in (found["plain"], found["auto"])
            )
    return markdown(
        [
            "streams",
            *("plain, tokens/s", "`auto`, tokens/s"),
            *("plain, first token", "`auto`, first token"),
            *("plain, between tokens", "`auto`, between tokens"),
        ],
        rows,
    )


def serving_chaos() -> str:
    """Requests by what became of them."""
    return _outcomes("serving_chaos")


def serving_attacks() -> str:
    """What another client's stream saw of each attack, in milliseconds."""
    return markdown(
        ["attack", "worst gap", "median gap", "worst first token", "worst `/health`"],
        [
            [one["attack"], *(f"{one[what]:.0f}" for what in _SEEN)]
            for one in result("serving_attacks")["attacks"]
        ],
    )


_SEEN = ("worst_gap", "median_gap", "worst_first", "worst_health")


def serving_faults() -> str:
    """Requests to an engine that fails, by outcome."""
    return _outcomes("serving_faults")


def _outcomes(trial: str) -> str:
    counts = sorted(result(trial)["counts"].items(), key=lambda item: -item[1])
    return markdown(["requests", ""], [[f"{number:,}", name] for name, number in counts])


TABLES: dict[str, Table] = {
    table.__name__: table
    for table in (
        precisions,
        exporting,
        identity,
        drafting,
        own_time,
        acceptance,
        sampling,
        lookup,
        race,
        race_each,
        race_each_own,
        race_systems,
        race_systems_own,
        race_quoting,
        pair,
        first_token,
        native,
        batching,
        serving_load,
        serving_chaos,
        serving_attacks,
        serving_faults,
    )
}


if __name__ == "__main__":
    main()
