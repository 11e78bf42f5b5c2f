"""``specplug tune``: measure what the target's calls cost here, for ``--draft-tokens auto``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specplug import engines, tuning
from specplug.bundle import Bundle
from specplug.cli import console
from specplug.cli.console import BundlePath, Sources, TargetDevice, TargetEngine, Threads
from specplug.opening import EngineOptions
from specplug.tuning import TunedCosts


def tune(
    bundle: BundlePath,
    contexts: Annotated[
        str, typer.Option(metavar="NUMBERS", help="Cached tokens to measure at.")
    ] = ",".join(map(str, tuning.CONTEXTS)),
    seconds: Annotated[float, typer.Option(min=0.1, help="For each of them.")] = tuning.SECONDS,
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    source: Sources = None,
    threads: Threads = None,
) -> None:
    """Measure the target's calls by width, and keep them in the bundle's tuning.json."""
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
                seconds=seconds,
                report=lambda done: bar.update(task, completed=done),
            )
    finally:
        engine.close()
    console.stdout.print(_table(tuned))
    console.note(f"written to {opened.path / tuning.TUNING}")


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
