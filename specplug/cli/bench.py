"""``specplug bench``: engines, precisions and drafters side by side."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specplug.bench.calls import measure_calls, measure_prefill
from specplug.bench.machine import measure_footprint
from specplug.bench.plot import check_plot, draw, label
from specplug.bench.report import Report
from specplug.bench.subjects import export_missing, find_subjects, open_subjects
from specplug.bench.texts import PLAIN, SyntheticDrafter, TextOptions, measure_texts
from specplug.bench.workload import BUILT_IN, read_workload
from specplug.bundle import Bundle, PrecisionName
from specplug.cli import choosing, console
from specplug.cli.choosing import Seed, Temperature
from specplug.cli.console import DraftTokens, Sources, Threads
from specplug.drafters import DRAFTERS, OF_A_BUNDLE
from specplug.engines import names
from specplug.machine import describe_machine
from specplug.opening import EngineOptions, check_draft
from specplug.staging import replace_file
from specplug.types import EngineError

_STYLE: dict[str, Any] = {"title_justify": "left", "box": None, "pad_edge": False}
_ROUNDS_OF_CALLS = 3  # for each repeat of the texts


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Folders made by specplug export.")
    ],
    engines: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help=f"Of {','.join(names())}.",
            show_default="what each bundle was exported for",
        ),
    ] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Such as fp32,w8a8,int4; those that no bundle has are exported for the run.",
            show_default="the bundles'",
        ),
    ] = None,
    widths: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Tokens a row of measured calls.")
    ] = "1,2,4,8,16",
    batches: Annotated[str, typer.Option(metavar="NUMBERS", help="Rows of measured calls.")] = "1",
    drafters: Annotated[
        str, typer.Option(metavar="NAMES", help=f"Of {','.join(DRAFTERS)}.")
    ] = "none,ngram",
    draft_tokens: DraftTokens = "auto",
    synthetic_acceptance: Annotated[
        float | None,
        typer.Option(
            metavar="CHANCE",
            help="Also draft the known text, each token right with this chance: compares engines "
            "at equal luck.",
        ),
    ] = None,
    workload: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Prompts: JSON lines with id, category, prompt, or Spec-Bench's.",
            show_default="six built-in prompts",
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Prompts at most, of all categories in turn.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="New tokens an answer.")] = 128,
    repeats: Annotated[int, typer.Option(min=1, help="Times that all is measured.")] = 3,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    device: Annotated[
        str | None, typer.Option(help="For engines with several, such as cuda:1.")
    ] = None,
    source: Sources = None,
    threads: Threads = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say of every prompt what was drafted, and why.")
    ] = False,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write all figures.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw curves and tokens a second.")
    ] = None,
) -> None:
    """Compare engines, precisions and drafters: calls, prompts, text, memory, start-up."""
    wanted_widths, wanted_batches = (
        console.numbers("--widths", widths),
        console.numbers("--batches", batches),
    )
    drafter_names = _chosen("--drafters", drafters, DRAFTERS)
    engine_names = _chosen("--engines", engines or "", names())
    wanted_precisions = _chosen("--precisions", precisions or "", get_args(PrecisionName))
    if plot:
        check_plot(plot)
    if synthetic_acceptance is not None:
        SyntheticDrafter(synthetic_acceptance)
    for file in filter(None, (as_json, plot)):
        if not file.absolute().parent.is_dir():
            raise ValueError(f"{file}: its folder does not exist")
    items = read_workload(workload or BUILT_IN, limit)
    options = TextOptions(
        drafters=tuple(drafter_names),
        draft_tokens=console.draft_tokens(draft_tokens),
        max_tokens=max_tokens,
        repeats=repeats,
        sampling=choosing.choice(temperature=temperature, top_k=0, top_p=1.0, min_p=0.0, seed=seed),
        synthetic_acceptance=synthetic_acceptance,
    )
    opened = [Bundle.open(path) for path in bundles]
    has_draft = any(bundle.manifest.draft for bundle in opened)
    drafts = bool({*OF_A_BUNDLE} & {*drafter_names}) or ("auto" in drafter_names and has_draft)
    if {*OF_A_BUNDLE} & {*drafter_names}:
        for bundle in opened:
            check_draft(bundle)
    sources = tuple(source or ())
    report = Report(
        machine=describe_machine(),
        settings={
            "bundles": [bundle.path.name for bundle in opened],
            "workload": (workload or BUILT_IN).name,
            "prompts": len(items),
            "max_tokens": max_tokens,
            "draft_tokens": draft_tokens,
            "repeats": repeats,
            "temperature": temperature,
            "seed": seed,
            "synthetic_acceptance": synthetic_acceptance,
            "threads": threads,
        },
    )
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with (
        tempfile.TemporaryDirectory(prefix="specplug-bench-") as folder,
        Progress(*columns, console=console.stderr, transient=True) as bar,
    ):
        have = {bundle.manifest.target.precision for bundle in opened}
        lacking = [name for name in wanted_precisions if name not in have]
        if lacking:
            bar.add_task(f"exporting {', '.join(lacking)}", total=None)
            opened += export_missing(opened[0], lacking, sources, Path(folder))
        subjects = find_subjects(
            opened,
            engine_names,
            wanted_precisions,
            EngineOptions(
                device=device,
                sources=sources,
                threads=threads,
                max_batch=max(wanted_batches),
                share_threads=drafts,
            ),
        )
        task = bar.add_task("loading engines", total=None)
        loaded, report.missing = open_subjects(subjects)
        if not loaded:
            raise EngineError("; ".join(f"{each.label}: {each.reason}" for each in report.missing))
        try:
            rounds = _ROUNDS_OF_CALLS * repeats
            steps = len(loaded) * (1 + len(items) * repeats) + 2 * rounds + 1
            bar.update(task, total=steps)

            def advance() -> None:
                bar.advance(task)

            bar.update(task, description="start-up and memory")
            for subject in loaded:
                report.footprints[subject] = measure_footprint(subject)
                advance()
            bar.update(task, description="calls")
            report.calls = measure_calls(loaded, wanted_widths, wanted_batches, rounds, advance)
            bar.update(task, description="prompts")
            report.prefill = measure_prefill(loaded, rounds, advance)
            bar.update(task, description="texts")
            report.runs = measure_texts(loaded, items, options, advance)
        finally:
            for engine in loaded.values():
                engine.close()
    result = report.as_dict()
    if as_json:
        text = json.dumps(result, indent=1) + "\n"
        replace_file(as_json, lambda part: part.write_text(text))
    if plot:
        draw(result, plot)
    if explain:
        for run in result["runs"]:
            if run["drafter"] != PLAIN and run["repeat"] == 0:
                console.stdout.print(explanation(run), markup=False)
        console.stdout.print()
    _show(result)


def explanation(run: dict[str, Any]) -> str:
    """What a drafter did on a prompt, and what it went by, in a few lines."""
    lines = [
        f"{run['prompt_id']} ({run['category']}), {label(run)}, {run['drafter']}: "
        f"{run['new_tokens']} tokens in {run['rounds']} rounds, {run['undrafted_rounds']} of them "
        f"without a draft; acceptance length {run['acceptance_length']:.2f}"
    ]
    if run["call_milliseconds"]:
        costs = (f"{width}: {cost:.1f}" for width, cost in run["call_milliseconds"].items())
        lines.append(f"  a call costs, in ms by width, {', '.join(costs)}")
    lines += [
        f"  {name}: {count['accepted']} of {count['drafted']} drafted tokens accepted, "
        f"{count['expected']:.0f} expected"
        for name, count in run["sources"].items()
    ]
    return "\n".join(lines)


def _chosen(option: str, given: str, known: Collection[str]) -> list[str]:
    found = [name for name in given.split(",") if name]
    if unknown := [name for name in found if name not in known]:
        raise ValueError(f"{option} {unknown[0]}: have {', '.join(known)}")
    return found


def _show(result: dict[str, Any]) -> None:
    summary = result["summary"]
    for table in (_costs(summary), _texts(summary)):
        console.stdout.print(table)
        console.stdout.print()
    for each in result["missing"]:
        console.note(f"not measured: {each['what']}: {each['reason']}")
    different = [row for row in summary["texts"] if row["same_text"] < row["texts"]]
    for row in different:
        console.fail(
            f"{label(row)}, {row['drafter']}: {row['texts'] - row['same_text']} of {row['texts']} "
            "texts differ from plain decoding's"
        )
    if different:
        raise typer.Exit(1)


def _costs(summary: dict[str, Any]) -> Table:
    """Start-up, memory, prompts, and milliseconds of a call by batch and width."""
    shapes = list(dict.fromkeys((row["batch"], row["width"]) for row in summary["calls"]))
    table = Table(title="milliseconds a call (median; batch x width)", **_STYLE)
    for name in ("engine", "start-up", "memory", "prompt"):
        table.add_column(name, justify="left" if name == "engine" else "right")
    for batch, width in shapes:
        table.add_column(f"{batch}x{width}", justify="right")
    calls = {
        (label(row), row["batch"], row["width"]): row["milliseconds"]["median"]
        for row in summary["calls"]
    }
    for row in summary["engines"]:
        name = label(row)
        costs = (calls.get((name, *shape)) for shape in shapes)
        table.add_row(
            name,
            f"{row['start_seconds']:.1f} s",
            f"{row['memory_bytes'] / 1e6:.0f} MB",
            f"{row['prefill_tokens_per_second']['median']:.0f} tokens/s",
            *(f"{cost:.1f}" if cost is not None else "" for cost in costs),
        )
    return table


def _texts(summary: dict[str, Any]) -> Table:
    table = Table(title="texts (medians, 95th percentile in brackets)", **_STYLE)
    for name in (
        "engine",
        "drafter",
        "tokens/s",
        "over plain",
        "acceptance length",
        "first token",
        "between deliveries",
        "J/token",
        "same text",
    ):
        table.add_column(name, justify="left" if name in ("engine", "drafter") else "right")
    for row in summary["texts"]:
        first, gap = row["first_token_seconds"], row["inter_token_seconds"]
        joules = row["joules_per_token"]
        table.add_row(
            label(row),
            "plain" if row["drafter"] == PLAIN else row["drafter"],
            f"{row['tokens_per_second']['median']:.1f}",
            f"{row['over_plain']['median']:.2f}",
            f"{row['acceptance_length']:.2f}",
            f"{1e3 * first['median']:.0f} ms ({1e3 * first['p95']:.0f})",
            f"{1e3 * gap['median']:.1f} ms ({1e3 * gap['p95']:.1f})",
            f"{joules:.2f}" if joules is not None else "not exposed",
            f"{row['same_text']} of {row['texts']}",
        )
    return table
