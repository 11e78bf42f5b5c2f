"""``specplug tune --skip-layers``: the target's layers to draft with, found by its own answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from specplug.bench.workload import BUILT_IN, read_workload
from specplug.bundle import Bundle, ChosenLayers
from specplug.cli import console
from specplug.skip_search import MAX_TOKENS, SECONDS, Candidate, RoundCosts
from specplug.text_file import read_text

if TYPE_CHECKING:
    from specplug.export.choosing import Choice


def tune_layers(
    path: Path,
    files: Sequence[Path],
    *,
    seconds: float | None,
    max_tokens: int | None,
    seed: int | None,
    dry_run: bool,
    force: bool,
    threads: int | None,
) -> None:
    """Search, show what was found, and write it if it pays.

    Args:
        path: of the bundle.
        files: of prompts; none: the built-in ones.
        seconds: of the search; None: :data:`SECONDS`.
        max_tokens: of an answer; None: :data:`MAX_TOKENS`.
        seed: of the search; None: 0.
        dry_run: write nothing.
        force: write it in any case.
        threads: of the engines.
    """
    prompts = [prompt for file in files or (BUILT_IN,) for prompt in _read_prompts(file)]
    if not files:
        console.note("judged by built-in prompts: your own (--prompts) tell what you will gain")
    bundle = Bundle.open(path)
    from specplug.export.choosing import ChoiceOptions, Watcher, choose_layers
    from specplug.export.skipping import check_bundle, write_draft

    check_bundle(bundle, force=force or dry_run)
    options = ChoiceOptions(
        seconds=SECONDS if seconds is None else seconds,
        max_tokens=MAX_TOKENS if max_tokens is None else max_tokens,
        seed=seed or 0,
        threads=threads,
    )

    class Shown(Watcher):
        """On a bar."""

        def doing(self, what: str, done: float) -> None:
            bar.update(task, description=what, completed=done)

        def searching(self, tried: int, best: Candidate, costs: RoundCosts, left: float) -> None:
            bar.update(
                task,
                completed=1 - left / options.seconds,
                description=f"{tried} sets of layers tried; best so far {len(best.layers)} layers, "
                f"{best.tokens_per_second / costs.plain:.2f} of plain decoding's speed; "
                f"{left:.0f} s left",
            )

    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console.stderr, transient=True) as bar:
        task = bar.add_task("starting", total=1.0)
        choice = choose_layers(bundle, prompts, options, Shown())
    _show(choice, bundle.manifest.target.cache.layers)
    if dry_run:
        console.note("--dry-run: the bundle is as it was")
    elif choice.pays or force:
        write_draft(bundle, choice.layers, choice.chosen)
        console.note(f"written into {path}: --drafter self and auto draft with it")
    else:
        console.note(
            "it does not pay on this machine: the bundle is as it was; --force writes it for others"
        )


def _read_prompts(file: Path) -> list[str]:
    if ".jsonl" in file.suffixes:
        return [item.prompt for item in read_workload(file)]
    text = read_text(file, "--prompts")
    if not text.strip():
        raise ValueError(f"--prompts {file}: it is empty")
    return [text]


def _show(choice: Choice, layers: int) -> None:
    chosen = choice.chosen
    skipped = [layer for layer in range(layers) if layer not in choice.layers]
    end = "the search was done" if choice.finished else "the time was up"
    rows = {
        "sets tried": f"{chosen.tried}, then {end}",
        "drafts with": f"{len(choice.layers)} of {layers} layers: {ranges(choice.layers)}",
        "skips": ranges(skipped),
        "right guesses": chances(chosen),
        "a guess": f"{1e3 * choice.draft_seconds:.2f} ms; the target's call of one token "
        f"{1e3 * choice.target_seconds:.2f} ms",
        "expected": f"{chosen.tokens_per_second:.1f} tokens/s, drafting {chosen.draft_tokens} a "
        f"round; {chosen.plain_tokens_per_second:.1f} without any: {choice.gain:.2f} times",
    }
    style: dict[str, Any] = {"box": None, "pad_edge": False, "show_header": False}
    table = Table(**style)
    for name, value in rows.items():
        table.add_row(name, value)
    console.stdout.print(table)


def described(chosen: ChosenLayers) -> str:
    """How layers were chosen, in a line."""
    return (
        f"chosen by tune --skip-layers, of {chosen.tried} sets tried with seed {chosen.seed}: "
        f"guesses right {chances(chosen)}; expected {chosen.tokens_per_second:.1f} tokens/s, "
        f"drafting {chosen.draft_tokens} a round, {chosen.plain_tokens_per_second:.1f} without "
        f"any, on {chosen.machine}"
    )


def ranges(layers: Sequence[int]) -> str:
    """Ascending numbers as ``0-9,20``, as ``export --self-draft layers=`` takes them."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


def chances(chosen: ChosenLayers) -> str:
    """How often drafted tokens were right, by their place."""
    shares = ", ".join(f"{chance:.0%}" for chance in chosen.chances)
    return f"{shares} by place, on {chosen.answer_tokens} tokens of {chosen.prompts} answers"
