"""``specplug tune``: what the target's calls cost here, and which of its layers to draft with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specplug import engines, skip_search, tuning
from specplug.bundle import Bundle
from specplug.cli import console, skipping
from specplug.cli.console import BundlePath, Sources, TargetDevice, TargetEngine, Threads
from specplug.opening import EngineOptions
from specplug.tuning import TunedCosts


def tune(
    bundle: BundlePath,
    contexts: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Cached tokens to measure at.",
            show_default=",".join(map(str, tuning.CONTEXTS)),
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            min=0.1,
            help="For each of them; with --skip-layers, for the search.",
            show_default=f"{tuning.SECONDS:g}; {skip_search.SECONDS:g}",
        ),
    ] = None,
    skip_layers: Annotated[
        bool,
        typer.Option(
            "--skip-layers",
            help="Find the target's layers to draft with (--drafter self), by its own answers to "
            "your prompts, and write the draft into the bundle if it pays.",
        ),
    ] = False,
    prompts: Annotated[
        list[Path] | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="With --skip-layers: a prompt, or JSON lines as bench --workload takes them "
            "(.jsonl, .jsonl.gz); repeatable.",
            show_default="six built-in prompts",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="With --skip-layers: new tokens an answer.",
            show_default=str(skip_search.MAX_TOKENS),
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="With --skip-layers: of the search.", show_default="0"),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --skip-layers: find and say, write nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="With --skip-layers: write the draft also if it does not pay on this machine, or "
            "in the place of another one.",
        ),
    ] = False,
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    source: Sources = None,
    threads: Threads = None,
) -> None:
    """Measure the target's calls by width, and keep them in the bundle's tuning.json."""
    engine_options = {
        "--target-engine": target_engine,
        "--target-device": target_device,
        "--source": source,
    }
    for_skipping = {
        "--prompts": prompts,
        "--max-tokens": max_tokens,
        "--seed": seed,
        "--dry-run": dry_run,
        "--force": force,
    }
    if skip_layers:
        _check_absent(
            {"--contexts": contexts, **engine_options},
            "--skip-layers finds layers by the target's answers, on onnxruntime",
        )
        skipping.tune_layers(
            bundle,
            prompts or (),
            seconds=seconds,
            max_tokens=max_tokens,
            seed=seed,
            dry_run=dry_run,
            force=force,
            threads=threads,
        )
        return
    _check_absent(for_skipping, "without --skip-layers only calls are measured")
    wanted: Sequence[int] = tuning.CONTEXTS
    if contexts is not None:
        wanted = console.numbers("--contexts", contexts, most=1 << 20)
    opened = Bundle.open(bundle)
    engine = engines.load(
        opened.path,
        opened.manifest.target,
        EngineOptions(
            engine=target_engine,
            device=target_device,
            sources=tuple(source or ()),
            threads=threads,
        ),
    )
    try:
        columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=console.stderr, transient=True) as bar:
            task = bar.add_task("measuring", total=1.0)
            tuned = tuning.tune(
                opened,
                engine,
                threads,
                contexts=wanted,
                seconds=tuning.SECONDS if seconds is None else seconds,
                report=lambda done: bar.update(task, completed=done),
            )
    finally:
        engine.close()
    console.stdout.print(_table(tuned))
    console.note(f"written to {opened.path / tuning.TUNING}")


def _check_absent(options: Mapping[str, object], reason: str) -> None:
    given = [name for name, value in options.items() if value]
    if given:
        raise ValueError(f"{given[0]} has no place here: {reason}")


def _table(tuned: TunedCosts) -> Table:
    widths = sorted({width for costs in tuned.contexts.values() for width in costs})
    table = Table(
        title=f"milliseconds a call of {tuned.engine} in {tuned.precision}, by its tokens",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("cached tokens", justify="right")
    for width in widths:
        table.add_column(str(width), justify="right")
    for context, costs in tuned.contexts.items():
        cells = (f"{1e3 * costs[width]:.1f}" if width in costs else "" for width in widths)
        table.add_row(str(context), *cells)
    return table
