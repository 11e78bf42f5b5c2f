"""Pictures of the results, for the documents: one function a picture.

.venv/bin/python benchmarks/charts.py [RESULT]    # a race's; race_specbench-dev by default
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from measuring import RESULTS

DOCS = Path(__file__).parent.parent / "docs"
_OURS = "specplug"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("result", nargs="?", default="race_specbench-dev")
    parser.add_argument("--to", type=Path, default=DOCS / "race.png")
    arguments = parser.parse_args()
    print(race(json.loads((RESULTS / f"{arguments.result}.json").read_text()), arguments.to))


def race(result: dict[str, Any], path: Path) -> Path:
    """Tokens a second of every system by task group: plain decoding, and speculation on top.

    Two bars a system, its speculation's below its plain decoding's; specplug's systems come last.
    """
    systems = result["systems"]
    plain = _ours_last([name for name, found in systems.items() if found["plain"] is None])
    groups = [*dict.fromkeys(group for found in systems.values() for group in found["groups"])]
    figure = Figure(figsize=(12, 0.5 + 2.7 * -(-len(groups) // 3)), layout="constrained")
    panels = figure.subplots(-(-len(groups) // 3), 3, sharey=True, sharex=True, squeeze=False)
    for panel, group in zip(panels.flat, groups, strict=False):
        _bars(panel, systems, plain, group)
    for panel in panels.flat[len(groups) :]:
        panel.set_visible(False)
    panels[0, 0].set_yticks(range(len(plain)), [_label(systems[name], name) for name in plain])
    panels[0, 0].invert_yaxis()
    for row in panels:
        row[0].tick_params(axis="y", labelsize=8)
    for panel in panels[-1]:
        panel.set_xlabel("tokens a second, prompt included", fontsize=8)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    machine = result["machine"]
    figure.suptitle(
        f"{result['weights']}, {result['workload']}, {result['new_tokens']} new tokens: "
        f"{machine['cpu']}, {result['threads']} threads, {machine['date']}",
        fontsize=10,
    )
    return _save(figure, path)


def _bars(panel: Any, systems: dict[str, Any], plain: list[str], group: str) -> None:
    """One task group: two bars a system, specplug's in colours of its own."""
    height, shown = 0.4, set()
    for place, name in enumerate(plain):
        ours = systems[name]["tool"] == _OURS
        variants = [name, *(n for n, found in systems.items() if found["plain"] == name)]
        for row, variant in enumerate(variants[:2]):
            speed = systems[variant]["groups"].get(group, {}).get("tokens_per_second")
            if speed is None:
                continue
            tool = _OURS if ours else "peer"
            label = f"{tool}, {'speculation' if row else 'plain'}"
            color = ("#f0b27a", "#ca5f12") if ours else ("#b8c4d0", "#5d7288")
            drawn = panel.barh(
                place + (row - 0.5) * height, speed, height, color=color[row],
                label="" if label in shown else label,
            )  # fmt: skip
            shown.add(label)
            panel.bar_label(drawn, fmt="%.0f", fontsize=6, padding=2)
    panel.set_title(group, fontsize=9)
    panel.margins(x=0.12)
    panel.spines[["top", "right"]].set_visible(False)
    panel.tick_params(labelsize=8)


def _ours_last(names: list[str]) -> list[str]:
    return sorted(names, key=lambda name: name.startswith(_OURS))


def _label(system: dict[str, Any], name: str) -> str:
    """With the quality, without which speeds of two precisions say little."""
    quality = system["quality"]
    return f"{name}\nKL {quality['mean_kl']:.3f}" if quality else name


def _save(figure: Figure, path: Path) -> Path:
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part, dpi=140)
    part.replace(path)
    return path


if __name__ == "__main__":
    main()
