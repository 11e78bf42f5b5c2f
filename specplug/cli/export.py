"""``specplug export``: from a checkpoint to a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from specplug.bundle import Component
from specplug.cli import console

_STAGES_A_SOURCE, _STAGES_A_COMPONENT, _STAGES_FROM_ONNX = 4, 2, 5


class TargetPrecision(StrEnum):
    """Values of ``--precision``."""

    auto = "auto"
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"
    w8a8 = "w8a8"
    int8 = "int8"
    int4 = "int4"
    gguf = "gguf"


def export(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to make.")
    ],
    source: Annotated[
        Path | None,
        typer.Argument(metavar="SOURCE", help="GGUF file, Hugging Face folder, or Hub id."),
    ] = None,
    from_onnx: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Instead of SOURCE: a graph that Optimum or onnxruntime-genai's builder "
            "exported, in the precision it has.",
        ),
    ] = None,
    precision: Annotated[
        TargetPrecision,
        typer.Option(
            help="auto picks by this machine's instructions; gguf keeps the file's own "
            "quantization."
        ),
    ] = TargetPrecision.auto,
    draft: Annotated[
        Path | None,
        typer.Option(metavar="SOURCE2", help="A smaller model with the same tokenizer."),
    ] = None,
    self_draft: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="Draft with the target itself: in another precision (int4), with some of its "
            "layers (layers=0-9,20-29), or both (int4:layers=0-9,20-29).",
        ),
    ] = None,
    keep_fp32: Annotated[
        str | None,
        typer.Option(
            "--keep-fp32",
            metavar="REGEX",
            help=r"Leave layers in fp32 by their weights' names, as in 'lm_head|layers\.0\.'.",
        ),
    ] = None,
    quality: Annotated[
        Path | None,
        typer.Option(metavar="TEXT", help="Measure quality on this text file of your own."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing bundle.")] = False,
) -> None:
    """Turn a checkpoint into a bundle, checked against its source."""
    if (source is None) == (from_onnx is None):
        raise ValueError("give either SOURCE or --from-onnx DIR")
    shaping = draft or self_draft or keep_fp32 or precision != TargetPrecision.auto
    if from_onnx is not None and shaping:
        raise ValueError(
            "--from-onnx takes the graph as it is: leave --precision, --draft, --self-draft and "
            "--keep-fp32 out"
        )
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console.stderr) as bar:
        task = bar.add_task("starting")

        def report(stage: str) -> None:
            bar.update(
                task,
                description=stage,
                advance=0 if bar.tasks[task].description == "starting" else 1,
            )

        if from_onnx is not None:
            from specplug.export.from_onnx import export_onnx

            bar.update(task, total=_STAGES_FROM_ONNX)
            manifest = export_onnx(
                from_onnx, output, quality_text=quality, force=force, report=report
            )
        elif source is not None:
            from specplug.export import export_bundle

            sources = 1 + bool(draft or "layers=" in (self_draft or ""))
            components = 1 + bool(draft or self_draft)
            stages = _STAGES_A_SOURCE * sources + _STAGES_A_COMPONENT * components + 1
            bar.update(task, total=stages)
            manifest = export_bundle(
                source,
                output,
                precision=precision.value,
                draft=draft,
                self_draft=self_draft,
                keep_fp32=keep_fp32,
                quality_text=quality,
                force=force,
                report=report,
                note=console.note,
            )
        bar.update(task, description="done", completed=bar.tasks[task].total)
    for name, component in (("target", manifest.target), ("draft", manifest.draft)):
        if component:
            console.note(f"{name}: {summary(component)}")
    print(output)


def summary(component: Component) -> str:
    """A component in one line: precision, size, exactness, quality."""
    size = sum(file.bytes for file in component.files)
    line = (
        f"{component.architecture} {component.parameters / 1e6:.0f}M in {component.precision}, "
        f"{size / 1e6:.0f} MB, rows independent of width from {component.min_width} on"
    )
    quality = component.quality
    if quality:
        line += (
            f"; against the source: top-1 {quality.top1_agreement:.1%}, "
            f"KL {quality.mean_kl:.4f}, perplexity x{quality.perplexity_ratio:.3f}"
        )
    return line
