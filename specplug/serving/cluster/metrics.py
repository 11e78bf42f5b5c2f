"""Metrics of several replicas on one page, in Prometheus' text format."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SAMPLE = re.compile(r"([^\s{]+)(?:\{(.*)\})?(\s.*)")


@dataclass(slots=True)
class Counts:
    """What an ingress did, beside passing on."""

    requests: int = 0
    retries: int = 0
    """Times that a request was sent to another replica after one was lost."""
    lost: int = 0
    """Requests whose answer broke off, or that no replica answered."""


def merged(replicas: Mapping[str, str], counts: Counts) -> str:
    """All samples of all replicas, each with the label ``replica``, and those of the ingress.

    Args:
        replicas: each one's metrics, in the same format.
        counts: the ingress's own.
    """
    headers: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for name, text in replicas.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split(" ", 3)[2]
                known = headers.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif found := _SAMPLE.fullmatch(line):
                labels = ",".join(filter(None, [f'replica="{name}"', found[2]]))
                samples.setdefault(family, []).append(f"{found[1]}{{{labels}}}{found[3]}")
    lines = [
        line for family, lines in samples.items() for line in [*headers.get(family, []), *lines]
    ]
    lines += [
        "# HELP specplug:replicas Replicas that take requests.",
        "# TYPE specplug:replicas gauge",
        f"specplug:replicas {len(replicas)}",
    ]
    for key, what in (
        ("requests", "Requests that the ingress took."),
        ("retries", "Times that a request was sent again because its replica was lost."),
        ("lost", "Requests whose answer broke off, or that no replica answered."),
    ):
        metric = f"specplug:ingress_{key}_total"
        lines += [f"# HELP {metric} {what}", f"# TYPE {metric} counter"]
        lines += [f"{metric} {getattr(counts, key)}"]
    return "\n".join([*lines, ""])
