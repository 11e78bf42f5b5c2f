"""``specplug export``: from a checkpoint to a bundle."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specplug.bundle import MANIFEST, Component
from specplug.cli import console
from specplug.integrations.triton import check_repository, write_repository
from specplug.staging import check_place
from specplug.text_file import read_text
from specplug.types import ExportError

if TYPE_CHECKING:
    from specplug.export import Plan

_STAGES_A_SOURCE, _STAGES_A_COMPONENT, _STAGES_FROM_ONNX = 4, 2, 5


class GraphDialect(StrEnum):
    """Values of ``--dialect``."""

    ort = "ort"
    standard = "standard"


class EngineName(StrEnum):
    """Values of ``--engine``."""

    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"


_DIALECTS = {EngineName.onnxruntime: "ort", EngineName.tensorrt: "standard"}


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
    source: Annotated[
        Path | None,
        typer.Argument(
            metavar="SOURCE",
            help="GGUF file, Hugging Face folder, or Hub id; with --triton also a bundle.",
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="BUNDLE", help="Folder to make.")
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
    dialect: Annotated[
        GraphDialect | None,
        typer.Option(
            help="ort: for ONNX Runtime; standard: operators of ONNX alone, for TensorRT, too.",
            show_default="ort, or what the engine needs",
        ),
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            help="What the bundle is for; tensorrt: builds plans from --dialect standard."
        ),
    ] = EngineName.onnxruntime,
    compute_capability: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X.Y",
            help="With --engine tensorrt: a GPU to build for, such as 8.9; repeatable; needs "
            "TensorRT-RTX, and no GPU here. Default: this machine's.",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="With --engine tensorrt: rows a call can have.", show_default="1"),
    ] = None,
    capacity: Annotated[
        int | None,
        typer.Option(
            help="With --engine tensorrt: cache entries a row has.",
            show_default="4096, or the model's positions",
        ),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="SOURCE2",
            help="A smaller model, best with the same tokenizer, or a head: a folder in the format "
            "of the speculators library (EAGLE-3, DFlash).",
        ),
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
    continuations: Annotated[
        bool,
        typer.Option(
            "--continuations",
            help="Note what the target says after every token alone, for token recycling to begin "
            "with; takes a minute for SmolLM2-135M.",
        ),
    ] = False,
    triton: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write a model repository for Triton Inference Server there, with a copy of "
            "the bundle.",
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an existing bundle, or Triton model.")
    ] = False,
    plan: Annotated[
        bool,
        typer.Option(
            "--plan", help="Only check, and say what would be written, what it takes and needs."
        ),
    ] = False,
) -> None:
    """Turn a checkpoint into a bundle, checked against its source."""
    if output is None:
        if source is None or not (source / MANIFEST).is_file():
            raise ValueError("give the bundle's folder: --output BUNDLE")
        if triton is None:
            raise ValueError(f"{source} is a bundle already: give --triton DIR, or another source")
        print(write_repository(source, triton, force=force))
        return
    if triton is not None:
        if plan:
            raise ValueError("--plan is for the bundle alone: leave --triton out")
        check_repository(output, triton, force=force)
    if (source is None) == (from_onnx is None):
        raise ValueError("give either SOURCE or --from-onnx DIR")
    shaping = (
        draft
        or self_draft
        or keep_fp32
        or continuations
        or precision != TargetPrecision.auto
        or dialect is not None
        or engine != EngineName.onnxruntime
    )
    if from_onnx is not None and shaping:
        raise ValueError(
            "--from-onnx takes the graph as it is: leave --precision, --dialect, --engine, "
            "--draft, --self-draft, --keep-fp32 and --continuations out"
        )
    for_tensorrt = {
        "compute_capabilities": tuple(compute_capability or ()),
        "max_batch": max_batch,
        "capacity": capacity,
    }
    given: dict[str, Any] = {
        name: value for name, value in for_tensorrt.items() if value not in (None, ())
    }
    if given and engine != EngineName.tensorrt:
        raise ValueError(
            "--compute-capability, --max-batch and --capacity are for --engine tensorrt"
        )
    if from_onnx is not None and plan:
        raise ValueError("--plan is for SOURCE: a graph from --from-onnx keeps its size")
    words: dict[str, Any] = {
        "precision": precision.value,
        "dialect": dialect.value if dialect else _DIALECTS[engine],
        "draft": draft,
        "self_draft": self_draft,
        "keep_fp32": keep_fp32,
    }
    # Importing what exports takes many seconds: what can be refused is refused before.
    if source is not None:
        from specplug.export.request import Request

        Request(source, quality_text=quality, **words).check(output, replace=force)
    elif from_onnx is not None:
        check_place(output.absolute(), replace=force)
        if not from_onnx.is_dir():
            raise ExportError(f"--from-onnx {from_onnx} is no folder: give that of the graph")
        if quality is not None:
            read_text(quality, "--quality")
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console.stderr, transient=plan) as bar:
        task = bar.add_task("starting")

        def report(stage: str) -> None:
            before = bar.tasks[task].description.partition(":")[0]
            goes_on = before in ("starting", stage.partition(":")[0])
            bar.update(task, description=stage, advance=0 if goes_on else 1)

        told: dict[str, Any] = {"quality_text": quality, "force": force, "report": report}
        if from_onnx is not None:
            from specplug.export.from_onnx import export_onnx

            bar.update(task, total=_STAGES_FROM_ONNX)
            manifest = export_onnx(from_onnx, output, **told)
        else:
            from specplug.export import export_bundle, plan_export

            what: dict[str, Any] = {
                "source": source,
                "note": console.note,
                **words,
            }
            if engine == EngineName.tensorrt:
                from specplug.export.tensorrt import Target

                what["tensorrt"] = Target(**given)
            if plan:
                planned = plan_export(output=output, **what, **told)
                bar.stop()
                _show(planned, output)
                return
            what["continuations"] = continuations
            sources = 1 + bool(draft or "layers=" in (self_draft or ""))
            components = 1 + bool(draft or self_draft)
            each = _STAGES_A_COMPONENT + (engine == EngineName.tensorrt)
            total = _STAGES_A_SOURCE * sources + each * components + continuations + 1
            bar.update(task, total=total)
            manifest = export_bundle(output=output, **what, **told)
        bar.update(task, description="done", completed=bar.tasks[task].total)
    for name, component in (("target", manifest.target), ("draft", manifest.draft)):
        if component:
            console.note(f"{name}: {summary(component)}")
    print(output)
    if triton is not None:
        print(write_repository(output, triton, force=force))


def _show(plan: Plan, output: Path) -> None:
    """Print a plan, and fail if the disk is too small for it."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for path, size in plan.files.items():
        table.add_row(path, _size(size))
    table.add_row(f"all of {output.name}", _size(plan.bundle_bytes), style="bold")
    table.add_row("more disk while it is made", _size(plan.scratch_bytes))
    table.add_row("disk that is free", _size(plan.free_bytes))
    if plan.download_bytes:
        table.add_row("download", _size(plan.download_bytes))
    table.add_row("memory, roughly", _size(plan.memory_bytes))
    table.add_row("time on two cores, roughly", f"{plan.seconds:.0f} s")
    console.stdout.print(table)
    if not plan.fits:
        raise ExportError(
            f"{output.absolute().parent} has {_size(plan.free_bytes)} free and the export needs "
            f"{_size(plan.bundle_bytes + plan.scratch_bytes)}: make room, or choose another disk"
        )


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.2f} {unit}"
    return f"{count / 1e3:.1f} kB"


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
