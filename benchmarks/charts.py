"""Pictures of the results, for the documents: one function a picture.

.venv/bin/python benchmarks/charts.py    # all of them, into docs/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from figures import result

DOCS = Path(__file__).parent.parent / "docs"
_OURS = "specplug"


def main() -> None:
    raced = result("race_specbench-dev")
    print(race(raced, DOCS / "race.png"))
    print(race(result("race_own"), DOCS / "race_own.png"))
    print(call_costs(result("costs"), DOCS / "costs.png"))
    print(positions(result("drafting"), DOCS / "positions.png"))
    print(quality_and_speed(raced, DOCS / "quality.png"))


def call_costs(costs: dict[str, Any], path: Path) -> Path:
    """What checking more tokens at once costs, by precision."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    panel = figure.subplots()
    for precision, by_width in costs["call_milliseconds"].items():
        widths = [int(width) for width in by_width]
        panel.plot(widths, [found["median"] for found in by_width.values()], "o-", label=precision)
    panel.set_xlabel("tokens in one call")
    panel.set_ylabel("milliseconds")
    panel.set_ylim(bottom=0)
    return _save(_dressed(figure, panel), path)


def positions(drafting: dict[str, Any], path: Path) -> Path:
    """Of all rounds the share that accepted at least so many drafted tokens."""
    runs = [run for run in drafting["runs"] if _has_positions(run)]
    figure = Figure(figsize=(5 * len(runs), 4), layout="constrained")
    for panel, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs, strict=True):
        for group, found in run["groups"].items():
            shares = found["acceptance_by_position"]
            panel.plot(range(1, len(shares) + 1), shares, ".-", label=group)
        panel.set_title(f"{run['workload']}, {run['precision']}", fontsize=9)
        panel.set_xlabel("drafted tokens accepted, at least")
        panel.set_ylabel("share of rounds")
        panel.set_ylim(0, 1)
        _dressed(figure, panel)
    return _save(figure, path)


def _has_positions(run: dict[str, Any]) -> bool:
    return all("acceptance_by_position" in group for group in run["groups"].values())


def quality_and_speed(race: dict[str, Any], path: Path) -> Path:
    """Every system's speed over how far it is from fp32; speculation drawn full, plain hollow."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    for name, found in race["systems"].items():
        if not found["quality"]:
            continue
        at = max(found["quality"]["mean_kl"], _LEAST_KL), found["all"]["tokens_per_second"]
        color = _COLORS[found["tool"] == _OURS][1]
        panel.plot(*at, "o", color=color, markerfacecolor=color if found["plain"] else "white")
        panel.annotate(name, at, textcoords="offset points", xytext=(6, -3), fontsize=7)
    panel.set_xscale("log")
    panel.set_xlabel(f"KL to fp32, nats (less is nearer; at least {_LEAST_KL:g} for the scale)")
    panel.set_ylabel("tokens a second, prompt included")
    panel.margins(x=0.2)
    panel.spines[["top", "right"]].set_visible(False)
    return _save(figure, path)


_LEAST_KL = 1e-4
_COLORS = {False: ("#b8c4d0", "#5d7288"), True: ("#f0b27a", "#ca5f12")}


def _dressed(figure: Figure, panel: Any) -> Figure:
    panel.legend(fontsize=8, frameon=False)
    panel.spines[["top", "right"]].set_visible(False)
    return figure


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
            drawn = panel.barh(
                place + (row - 0.5) * height, speed, height, color=_COLORS[ours][row],
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
