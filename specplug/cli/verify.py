"""``specplug verify``: is the text the same, here, with this bundle?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from specplug import verification
from specplug.checkpoint_path import check_exists
from specplug.cli import choosing, console, texts
from specplug.cli.choosing import Acceptance, MinP, Seed, Temperature, TopK, TopP
from specplug.cli.console import BundlePath, TargetDevice, TargetEngine, Threads
from specplug.verification import Check, VerifyOptions

_WORDS = {True: "pass", False: "FAIL", None: "skip"}
_STYLES = {True: "green", False: "bold red", None: "dim"}


def verify(
    bundle: BundlePath,
    source: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE",
            help="What the bundle was exported from: the export is repeated and compared.",
        ),
    ] = None,
    temperature: Temperature = 0.8,
    top_k: TopK = 0,
    top_p: TopP = 0.95,
    min_p: MinP = 0.0,
    seed: Seed = 0,
    acceptance: Acceptance = choosing.AcceptanceRule.coupled,
    sequences: Annotated[
        int,
        typer.Option(help="Sampled to test the distribution: more find smaller errors."),
    ] = verification.SEQUENCES,
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    threads: Threads = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report, for a program.")] = False,
) -> None:
    """Check on this machine that speculation leaves the text as it is (exit code 1: it is not)."""
    if source is not None:
        check_exists(source)
    options = VerifyOptions(
        sampling=choosing.choice(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            seed=seed,
            acceptance=acceptance,
        ),
        source=source,
        sequences=sequences,
        target_engine=target_engine,
        target_device=target_device,
        threads=threads,
    )
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    checks: list[Check] = []
    with Progress(*columns, console=console.stderr, transient=True) as bar:
        task = bar.add_task("files", total=1)
        for check in verification.verify(
            bundle, options, lambda name, done: bar.update(task, description=name, completed=done)
        ):
            checks.append(check)
            if not as_json:
                _show(check)
    passed = all(check.passed is not False for check in checks)
    if as_json:
        report = {"passed": passed, "checks": [asdict(check) for check in checks]}
        texts.print_json(report, indent=2)
    if not passed:
        raise typer.Exit(1)


def _show(check: Check) -> None:
    console.stdout.print(_WORDS[check.passed], style=_STYLES[check.passed], end="  ")
    console.stdout.print(f"{check.name:<12}  {check.summary}", markup=False, soft_wrap=True)
