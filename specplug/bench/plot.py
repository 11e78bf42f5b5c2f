"""The comparison as a picture: cost of a call by width, and tokens a second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from specplug.staging import replace_file
from specplug.types import MissingExtraError


def check_plot(path: Path) -> None:
    """Refuse a plot that could not be written, before anything is measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
        ValueError: a format that it does not write.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
    except ImportError as error:
        raise MissingExtraError("--plot needs matplotlib: pip install 'specplug[bench]'") from error
    formats = FigureCanvasAgg.get_supported_filetypes()
    if path.suffix[1:] not in formats:
        raise ValueError(f"--plot {path}: the name must end in .{', .'.join(sorted(formats))}")


def draw(report: dict[str, Any], path: Path) -> None:
    """Write the picture of what :meth:`specplug.bench.report.Report.as_dict` gives."""
    from matplotlib.figure import Figure

    summary = report["summary"]
    figure = Figure(figsize=(12, 5.4), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    _curves(curves, summary["calls"])
    _bars(bars, summary["texts"])
    machine = report["machine"]
    figure.suptitle(f"{machine['cpu']}, {machine['cores']} cores, {machine['date']}", fontsize=9)
    replace_file(path, lambda part: figure.savefig(part, dpi=140))


def label(row: dict[str, Any]) -> str:
    """An engine's name in tables and plots."""
    return " ".join(filter(None, (row["engine"], row["dialect"], row["precision"])))


def _curves(axes: Any, calls: list[dict[str, Any]]) -> None:
    labels = [*dict.fromkeys(map(label, calls))]
    batches = sorted({row["batch"] for row in calls})
    styles = dict(zip(batches, ("-", "--", ":", "-."), strict=False))
    for number, name in enumerate(labels):
        for batch in batches:
            rows = [row for row in calls if label(row) == name and row["batch"] == batch]
            if not rows:
                continue
            middle, low, high = (
                [row["milliseconds"][key] for row in rows] for key in ("median", "q1", "q3")
            )
            widths = [row["width"] for row in rows]
            suffix = f", batch {batch}" if batch > 1 else ""
            color = f"C{number}"
            axes.plot(
                widths, middle, styles.get(batch, "-"), marker="o", markersize=3, color=color,
                label=name + suffix,
            )  # fmt: skip
            axes.fill_between(widths, low, high, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="tokens a row in one call", ylabel="milliseconds a call", ylim=(0, None))
    axes.set_title("Cost of a call by its width")
    axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _bars(axes: Any, texts: list[dict[str, Any]]) -> None:
    labels = [*dict.fromkeys(map(label, texts))]
    drafters = [*dict.fromkeys(row["drafter"] for row in texts)]
    height = 0.8 / max(len(drafters), 1)
    for place, drafter in enumerate(drafters):
        rows = {label(row): row for row in texts if row["drafter"] == drafter}
        speeds = [rows[name]["tokens_per_second"]["median"] for name in labels if name in rows]
        places = [i + place * height for i, name in enumerate(labels) if name in rows]
        shown = "plain" if drafter == "none" else drafter
        drawn = axes.barh(places, speeds, height, label=shown)
        axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=2)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(labels))], labels, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="tokens a second, prompt included (median)")
    axes.set_title("Text, by drafter")
    axes.legend(fontsize=7, ncols=len(drafters), loc="upper center", bbox_to_anchor=(0.5, -0.14))
