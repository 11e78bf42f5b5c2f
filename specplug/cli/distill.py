"""``specplug distill``: a draft head that has learnt the target on the user's own prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from specplug.bench.workload import Item, read_workload
from specplug.bundle import MANIFEST, Bundle
from specplug.checkpoint_path import check_checkpoint
from specplug.cli import console
from specplug.cli.console import Sources, Threads
from specplug.cli.export import TargetPrecision
from specplug.staging import HEAD, check_place
from specplug.types import SpecplugError

if TYPE_CHECKING:
    from specplug.distilling.answers import AnswerProgress
    from specplug.distilling.distill import Distilled, DistillOptions
    from specplug.distilling.options import Progress as TrainingProgress

_GIGABYTE = 1 << 30


def distill(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE|BUNDLE",
            help="The target: what specplug export takes, or a bundle, which gets the head.",
        ),
    ],
    prompts: Annotated[
        list[Path],
        typer.Option(
            metavar="FILE",
            help='Prompts like yours, a line {"prompt": …} each, perhaps with the "answer" that '
            "the target gave; it writes the others. Repeatable.",
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DRAFTER", help="The head's folder.")
    ],
    precision: Annotated[
        TargetPrecision,
        typer.Option(help="Of the target while it answers; a bundle's own for a bundle."),
    ] = TargetPrecision.auto,
    max_tokens: Annotated[int, typer.Option(help="Of an answer.")] = 256,
    temperature: Annotated[
        list[float] | None,
        typer.Option(
            help="That the prompts are answered with, in turn; repeatable.",
            show_default="0 and 0.7",
        ),
    ] = None,
    vocabulary: Annotated[
        int | None,
        typer.Option(
            help="Tokens that the head guesses: those that most texts have.",
            show_default="8192, or those of the head that it starts from",
        ),
    ] = None,
    start_from: Annotated[
        Path | None,
        typer.Option(
            metavar="HEAD", help="Train this head further; --vocabulary chooses its words anew."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help="Layers of the target whose inputs the head reads.",
            show_default="a low, a middle and a high one",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(help="Times that each answer is learnt from.")] = 4,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 1e-3,
    batch: Annotated[int, typer.Option(min=1, help="Tokens that a step learns from.")] = 2048,
    max_batch: Annotated[int, typer.Option(min=1, help="Answers written at a time.")] = 32,
    disk_limit: Annotated[
        float, typer.Option(metavar="GB", help="For hidden states, 2 bytes a value.")
    ] = 20.0,
    seed: Annotated[int, typer.Option(min=0, help="Of answers, weights and order.")] = 0,
    device: Annotated[
        str, typer.Option(help="To train on, and for cuda to answer on, too, with PyTorch.")
    ] = "cpu",
    threads: Threads = None,
    eight_bits: Annotated[
        bool,
        typer.Option("--eight-bits", help="Write the head in 8 bits: a quarter of the size."),
    ] = False,
    source: Sources = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it takes: time, disk, memory.")
    ] = False,
    keep_work: Annotated[
        bool, typer.Option("--keep-work", help="Leave answers and checkpoint in DRAFTER.work.")
    ] = False,
    save_answers: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Keep the answers' text: as another --prompts, it spares the next training them. "
            "Compressed if it ends in .gz.",
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing head.")] = False,
) -> None:
    """Train a draft head on the target's own answers to your prompts; nothing leaves the machine.

    Interrupted, the same command goes on where it was.
    """
    items = _merged([item for file in prompts for item in read_workload(file)])
    chosen_layers = _layers(layers)
    if not dry_run:
        check_place(output.absolute(), replace=force, known_by=HEAD)
    if save_answers is not None and not save_answers.absolute().parent.is_dir():
        raise ValueError(f"--save-answers {save_answers}: its folder does not exist")
    if start_from is not None and not (start_from / HEAD).is_file():
        raise ValueError(f"--start-from {start_from} is no head: it has no {HEAD}")
    bundle = Bundle.open(model) if (model / MANIFEST).is_file() else None
    if bundle is None:
        check_checkpoint(model)
    # These imports take many seconds: what can be refused was refused before.
    from specplug.distilling import distill as distilling
    from specplug.distilling.answers import AnswerOptions
    from specplug.distilling.options import TrainingOptions

    path, of_bundle = _source(bundle, source) if bundle else (model, {})
    options = distilling.DistillOptions(
        precision=of_bundle.get("precision", precision.value),
        start_from=start_from,
        layers=chosen_layers,
        vocabulary=vocabulary,
        max_batch=max_batch,
        threads=threads,
        eight_bits=eight_bits,
        answers=AnswerOptions(
            max_tokens=max_tokens,
            temperatures=tuple(temperature or (0.0, 0.7)),
            seed=seed,
            most_bytes=int(disk_limit * _GIGABYTE),
        ),
        training=TrainingOptions(
            seed=seed, epochs=epochs, learning_rate=learning_rate, batch=batch, device=device
        ),
    )
    if dry_run:
        _show_plan(path, items, options)
        return
    with _shown() as told:
        made = distilling.distill(
            path,
            items,
            output,
            options,
            force=force,
            keep_work=keep_work,
            save_to=save_answers,
            told=told,
        )
    _summary(made)
    if bundle:
        _put_into(bundle, path, output, of_bundle)
        console.note(f"{bundle.path} has the head: --drafter auto uses it")
    else:
        console.note(f"next: specplug export {model} --draft {output} -o BUNDLE")
    print(output)


def _merged(items: Sequence[Item]) -> list[Item]:
    """Each prompt once with each of its answers, or without one if none is known."""
    found: dict[str, dict[str | None, Item]] = {}
    for item in items:
        found.setdefault(item.prompt, {})[item.answer] = item
    for answers in found.values():
        if len(answers) > 1:
            answers.pop(None, None)
    return [item for answers in found.values() for item in answers.values()]


def _layers(given: str | None) -> tuple[int, ...] | None:
    if given is None:
        return None
    try:
        return tuple(int(word) for word in given.split(","))
    except ValueError:
        raise ValueError(f"--layers {given}: need numbers of layers, such as 2,15,27") from None


def _source(bundle: Bundle, given: list[Path] | None) -> tuple[Path, dict[str, Any]]:
    """What a bundle was exported from, and how."""
    from specplug.engines.sources import find_source

    target = bundle.manifest.target
    if "torch" not in target.provenance.tools or target.plans:
        raise SpecplugError(
            f"{bundle.path} was made of another tool's graph or for TensorRT: give the model that "
            "it came from in its place, and export that with the head"
        )
    how: dict[str, Any] = {
        "precision": target.precision,
        "dialect": target.dialect,
        "keep_fp32": target.keep_fp32,
        "continuations": target.continuations is not None,
    }
    return find_source(target.provenance, given or ()), how


def _put_into(bundle: Bundle, source: Path, head: Path, how: dict[str, Any]) -> None:
    from specplug.export import export_bundle

    export_bundle(source, bundle.path, draft=head, force=True, note=console.note, **how)


class _Bar:
    """Both stages' progress on one line."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self._task = bar.add_task("", total=None)

    def stage(self, name: str) -> None:
        self._bar.update(self._task, description=name, completed=0, total=None)

    def answers(self, progress: AnswerProgress) -> None:
        speed = progress.tokens / max(progress.seconds, 1e-9)
        text = (
            f"answering: {progress.prompts} of {progress.of} prompts, {speed:.0f} tokens/s, "
            f"{progress.written / _GIGABYTE:.2f} GB"
        )
        self._bar.update(
            self._task, description=text, completed=progress.prompts, total=progress.of
        )

    def training(self, progress: TrainingProgress) -> None:
        text = (
            f"training: step {progress.step} of {progress.steps}, loss {progress.loss:.3f}, "
            f"{progress.tokens_per_second:.0f} tokens/s, {_time(progress.seconds_left)} left"
        )
        self._bar.update(
            self._task, description=text, completed=progress.step, total=progress.steps
        )
        found = progress.acceptance
        if found:
            shares = " ".join(f"{share:.0%}" for share in found.by_position)
            console.note(
                f"step {progress.step}: held-out answers accept {shares} of the drafted tokens by "
                f"position, {found.length:.2f} tokens a round"
            )


@contextmanager
def _shown() -> Iterator[Any]:
    from specplug.distilling.distill import Told

    columns = (BarColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console.stderr, transient=True) as progress:
        bar = _Bar(progress)
        yield Told(bar.stage, bar.answers, bar.training, console.note)


def _summary(made: Distilled) -> None:
    result, vocabulary = made.result, made.vocabulary
    shares = " ".join(f"{share:.0%}" for share in result.best.by_position)
    console.note(
        f"learnt from {made.tokens} tokens of {made.answers} answers in {_time(result.seconds)}; "
        f"the draft vocabulary of {len(vocabulary.ids)} has "
        f"{vocabulary.covered / max(vocabulary.answers, 1):.1%} of them"
    )
    console.note(
        f"held-out answers accept {shares} by position: {result.best.length:.2f} tokens a round"
    )


def _show_plan(path: Path, items: list[Item], options: DistillOptions) -> None:
    """Print what it takes, after a few seconds of answering and training."""
    from specplug.distilling.forecast import forecast

    with console.stderr.status("answering and training for a few seconds"):
        plan = forecast(path, items, options)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_row("answering", _time(plan.answer_seconds))
    table.add_row(f"training, {plan.steps} steps", _time(plan.training_seconds))
    table.add_row("disk for hidden states", _gigabytes(plan.answer_bytes))
    table.add_row("disk for the checkpoint", _gigabytes(plan.training_bytes))
    table.add_row("memory of training, roughly", _gigabytes(plan.memory_bytes))
    console.stdout.print(table)


def _gigabytes(count: int) -> str:
    return f"{count / _GIGABYTE:.2f} GB"


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
