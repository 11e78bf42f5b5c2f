"""A training as a picture: loss, tokens a round and acceptance by position, over the steps."""

from __future__ import annotations

from pathlib import Path

from specplug.distilling.journal import JOURNAL, read_journal
from specplug.staging import replace_file
from specplug.types import MissingExtraError, SpecplugError


def draw_curve(folder: Path, path: Path) -> None:
    """Write the picture of a training's journal, interruptions left out.

    Args:
        folder: of the training.
        path: of the picture; its suffix says which kind.

    Raises:
        MissingExtraError: matplotlib is not installed.
        SpecplugError: nothing was reported yet.
        ValueError: a kind that matplotlib does not write.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "a training's curve needs matplotlib: pip install 'specplug[distill]'"
        ) from error
    lines = read_journal(folder)
    if not lines:
        raise SpecplugError(f"{folder / JOURNAL} has no lines: train a few steps first")
    measured = [line for line in lines if "acceptance" in line]
    figure = Figure(figsize=(12, 4), layout="constrained")
    losses, lengths, positions = figure.subplots(1, 3)
    losses.plot([line["step"] for line in lines], [line["loss"] for line in lines])
    losses.set(title="Loss", ylabel="nats a token")
    steps = [line["step"] for line in measured]
    lengths.plot(steps, [line["length"] for line in measured], marker="o", markersize=3)
    lengths.set(title="Tokens a round, on texts held out", ylabel="accepted, and one more")
    for number, values in enumerate(zip(*(line["acceptance"] for line in measured), strict=True)):
        positions.plot(steps, values, marker="o", markersize=3, label=f"{number + 1}")
    positions.set(title="Drafts accepted, by their length", ylabel="share", ylim=(0, 1))
    if measured:
        positions.legend(fontsize=8, title="drafted tokens")
    for axes in (losses, lengths, positions):
        axes.set(xlabel="step", xlim=(0, None))
    replace_file(path, lambda part: figure.savefig(part, dpi=140))
