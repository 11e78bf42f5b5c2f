"""The race's arithmetic: from records of answers to tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from racing.records import Record
from racing.systems import System

OURS = "specplug"
_SAME_QUALITY = 1e-4  # nats; fp32 systems differ among themselves by rounding


def report(
    systems: Sequence[System], answers: Sequence[Record], alone: Sequence[Record], length: int
) -> Any:
    """Everything that the records say.

    Args:
        systems: that took part; those without an answer are left out.
        answers: records of :class:`racing.running.Race`.
        alone: likewise.
        length: tokens that every answer is reckoned to have, see :func:`completed`.
    """
    answers = [completed(answer, length) for answer in answers]
    by_system = {
        system.name: {a["prompt"]: a for a in answers if a["system"] == system.name}
        for system in systems
    }
    measured = {record["system"]: record for record in alone}
    figures: dict[str, Any] = {}
    for system in systems:
        mine = by_system[system.name]
        if not mine:
            continue
        base = system.plain or system.name
        figures[system.name] = {
            "tool": system.tool,
            "precision": system.precision,
            "drafter": system.drafter,
            "plain": system.plain,
            "groups": by_group(mine.values()),
            **measured_alone(measured.get(system.name), measured.get(base)),
        }
        figures[system.name]["all"] = over_groups(figures[system.name]["groups"])
        if system.plain and by_system.get(system.plain):
            figures[system.name]["over_plain"] = against(mine, by_system[system.plain])
    return {
        "systems": figures,
        "against_best_peer": against_best_peer(figures, by_system),
        "against_each_peer": against_each_peer(figures, by_system),
    }


def completed(answer: Record, length: int) -> Record:
    """The answer as if it had been so long, at its own speed after the first token.

    Systems round otherwise, and so answer otherwise: one ends after twenty tokens what another goes
    on about. Were these compared as they are, the prompt would be a larger part of the one's time.
    """
    rate = decoding_speed(answer)
    if rate is None:
        return answer
    return answer | {
        "length": length,
        "seconds": answer["first_token_seconds"] + (length - 1) / rate,
    }


def tokens(answer: Record) -> int:
    """That an answer has, or is reckoned to have."""
    return int(answer.get("length", len(answer["token_ids"])))


def speed(answer: Record) -> float:
    """Tokens a second, prompt included."""
    return tokens(answer) / float(answer["seconds"])


def decoding_speed(answer: Record) -> float | None:
    """Tokens a second after the first; None where there was none."""
    seconds = answer["seconds"] - answer["first_token_seconds"]
    later = tokens(answer) - 1
    return later / seconds if later and seconds > 0 else None


def joules(answer: Record) -> float | None:
    """Of the whole processor, a new token; None where the machine does not tell."""
    spent = answer.get("joules")
    return spent / len(answer["token_ids"]) if spent else None


def by_group(answers: Iterable[Record]) -> dict[str, dict[str, float]]:
    """Geometric means over the prompts of each group."""
    groups: dict[str, list[Record]] = {}
    for answer in answers:
        groups.setdefault(answer["group"], []).append(answer)
    return {
        group: {
            "prompts": len(mine),
            "tokens_per_second": statistics.geometric_mean(map(speed, mine)),
            "decoding_tokens_per_second": _mean(filter(None, map(decoding_speed, mine))),
            "joules_a_token": _mean(filter(None, map(joules, mine))),
        }
        for group, mine in groups.items()
    }


def over_groups(groups: dict[str, dict[str, float]]) -> dict[str, float]:
    """Geometric means over groups, each counting once."""
    names = ("tokens_per_second", "decoding_tokens_per_second")
    return {name: _mean(g[name] for g in groups.values() if g[name]) for name in names}


def against(mine: dict[str, Record], plain: dict[str, Record]) -> dict[str, Any]:
    """Speculation over plain decoding of the same system, on the prompts that both answered."""
    groups: dict[str, list[float]] = {}
    same = 0
    common = [prompt for prompt in mine if prompt in plain]
    for prompt in common:
        ratio = speed(mine[prompt]) / speed(plain[prompt])
        groups.setdefault(mine[prompt]["group"], []).append(ratio)
        same += mine[prompt]["token_ids"] == plain[prompt]["token_ids"]
    means = {group: statistics.geometric_mean(ratios) for group, ratios in groups.items()}
    return {
        "groups": means,
        "all": _mean(means.values()),
        "slowest_prompt": min((r for ratios in groups.values() for r in ratios), default=None),
        "same_text": same,
        "texts": len(common),
    }


def measured_alone(own: Record | None, base: Record | None) -> dict[str, Any]:
    """Memory of the system, and the quality of the plain decoding that it should equal."""
    return {
        "memory_bytes": own and own["memory"],
        "quality": base and base["quality"],
    }


def against_best_peer(
    figures: dict[str, Any], by_system: dict[str, dict[str, Record]]
) -> dict[str, Any]:
    """By group: the fastest peer, and our fastest configuration of no less quality."""
    table = {
        group: row
        for group in _groups(figures)
        if (row := _beside(figures, by_system, group, _peers(figures)))
    }
    ratios = [row["ratio"] for row in table.values() if "ratio" in row]
    return {"groups": table, "ratio": _mean(ratios)}


def against_each_peer(
    figures: dict[str, Any], by_system: dict[str, dict[str, Record]]
) -> dict[str, Any]:
    """The same for every peer and precision, the faster of its plain decoding and speculation."""
    return {
        peer: {
            group: row
            for group in _groups(figures)
            if (row := _beside(figures, by_system, group, [peer, *_speculations(figures, peer)]))
        }
        for peer in _peers(figures)
        if figures[peer]["plain"] is None
    }


def _beside(
    figures: dict[str, Any],
    by_system: dict[str, dict[str, Record]],
    group: str,
    peers: Sequence[str],
) -> dict[str, Any] | None:
    """The fastest of some peers and our fastest configuration of no less quality, in a group.

    Their ratio is over the prompts that both answered. None: no such peer answered.
    """
    there = [name for name in peers if group in figures[name]["groups"]]
    if not there:
        return None
    peer = max(there, key=lambda name: _speed_in(figures[name], group))
    row = {"peer": peer, **_brief(figures[peer], group)}
    equal = [
        name
        for name, found in figures.items()
        if found["tool"] == OURS
        and group in found["groups"]
        and _no_worse(found["quality"], figures[peer]["quality"])
    ]
    if equal:
        best = max(equal, key=lambda name: _speed_in(figures[name], group))
        row["specplug"] = {"system": best, **_brief(figures[best], group)}
        row["ratio"] = against(by_system[best], by_system[peer])["groups"][group]
    return row


def _groups(figures: dict[str, Any]) -> list[str]:
    return [*dict.fromkeys(group for found in figures.values() for group in found["groups"])]


def _peers(figures: dict[str, Any]) -> list[str]:
    return [name for name, found in figures.items() if found["tool"] != OURS]


def _speculations(figures: dict[str, Any], plain: str) -> list[str]:
    return [name for name, found in figures.items() if found["plain"] == plain]


def _speed_in(figures: dict[str, Any], group: str) -> float:
    return float(figures["groups"][group]["tokens_per_second"])


def _brief(figures: dict[str, Any], group: str) -> dict[str, Any]:
    quality = figures["quality"]
    return {
        "tokens_per_second": _speed_in(figures, group),
        "mean_kl": quality and quality["mean_kl"],
    }


def _no_worse(ours: dict[str, float] | None, theirs: dict[str, float] | None) -> bool:
    return bool(ours and theirs) and ours["mean_kl"] <= theirs["mean_kl"] + _SAME_QUALITY


def first_tokens(systems: Sequence[System], answers: Sequence[Record]) -> dict[str, Any]:
    """By prompt length: each system's median seconds to the first token, over the best peer's."""
    lengths = [*dict.fromkeys(answer["group"] for answer in answers)]
    table: dict[str, Any] = {}
    for length in lengths:
        medians = {
            system.name: statistics.median(found)
            for system in systems
            if (
                found := [
                    a["first_token_seconds"]
                    for a in answers
                    if a["group"] == length and a["system"] == system.name
                ]
            )
        }
        peers = {s.name: medians[s.name] for s in systems if s.tool != OURS and s.name in medians}
        best = min(peers, key=lambda name: peers[name]) if peers else None
        table[length] = {
            "best_peer": best,
            "systems": {
                name: {
                    "median_seconds": seconds,
                    "over_best_peer": seconds / peers[best] if best else None,
                }
                for name, seconds in medians.items()
            },
        }
    return table


def _mean(values: Iterable[float]) -> float | None:
    """Geometric; None of nothing."""
    found = list(values)
    return statistics.geometric_mean(found) if found else None
