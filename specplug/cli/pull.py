"""``specplug pull``: real weights to try things with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from specplug import weights
from specplug.cli import console


def pull(
    name: Annotated[str, typer.Argument(help="One of: " + ", ".join(weights.MODELS) + ".")],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for the weights; default: the user cache.")
    ] = None,
) -> None:
    """Fetch a model's weights, checked by SHA-256; the last line is their path."""
    model = weights.MODELS.get(name)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Progress(*columns, console=console.stderr) as bar:
        task = bar.add_task(name, total=model.bytes if model else None)
        path = weights.pull(
            name,
            to or weights.default_folder(),
            lambda done: bar.update(task, completed=done),
        )
    if model:
        console.note(f"{model.description}, licence {model.licence}")
    print(path)
