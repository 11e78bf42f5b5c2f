"""What was measured, as plain data: a record a run, and a summary."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from specplug.bench.calls import CallCost, PrefillCost
from specplug.bench.machine import Footprint
from specplug.bench.subjects import Missing, Subject
from specplug.bench.texts import PLAIN, Run


@dataclass(slots=True)
class Report:
    """All of a comparison."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    missing: list[Missing] = field(default_factory=list)
    footprints: dict[Subject, Footprint] = field(default_factory=dict)
    calls: list[CallCost] = field(default_factory=list)
    prefill: list[PrefillCost] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "machine": self.machine,
            "settings": self.settings,
            "missing": [{"what": each.label, "reason": each.reason} for each in self.missing],
            "runs": [_record(run) for run in self.runs],
            "summary": {
                "engines": [self._engine(subject) for subject in self.footprints],
                "calls": [_call(cost) for cost in self.calls],
                "texts": [*self.texts()],
            },
        }

    def _engine(self, subject: Subject) -> dict[str, Any]:
        prefill = next(cost for cost in self.prefill if cost.subject == subject)
        rates = [prefill.tokens / seconds for seconds in prefill.seconds]
        footprint = self.footprints[subject]
        return _names(subject) | {
            "start_seconds": footprint.start_seconds,
            "memory_bytes": footprint.memory_bytes,
            "prefill_tokens": prefill.tokens,
            "prefill_tokens_per_second": spread(rates),
        }

    def texts(self) -> Iterable[dict[str, Any]]:
        """A summary of each subject with each drafter."""
        plain = {(r.subject, r.item, r.repeat): r for r in self.runs if r.drafter == PLAIN}
        for (subject, drafter), runs in _grouped(self.runs).items():
            over_plain = [
                run.tokens_per_second / plain[run.subject, run.item, run.repeat].tokens_per_second
                for run in runs
            ]
            gaps = [gap for run in runs for gap in run.gaps] or [0.0]
            first = [run.first_token_seconds for run in runs]
            joules = [run.joules / run.new_tokens for run in runs if run.joules is not None]
            yield _names(subject) | {
                "drafter": drafter,
                "tokens_per_second": spread(run.tokens_per_second for run in runs),
                "decode_tokens_per_second": spread(run.decode_tokens_per_second for run in runs),
                "over_plain": spread(over_plain),
                "acceptance_length": statistics.fmean(run.acceptance_length for run in runs),
                "first_token_seconds": _percentiles(first),
                "inter_token_seconds": _percentiles(gaps),
                "joules_per_token": statistics.median(joules) if joules else None,
                "same_text": sum(run.same_text for run in runs),
                "texts": len(runs),
            }


def _grouped(runs: Sequence[Run]) -> Mapping[tuple[Subject, str], list[Run]]:
    made: dict[tuple[Subject, str], list[Run]] = {}
    for run in runs:
        made.setdefault((run.subject, run.drafter), []).append(run)
    return made


def _names(subject: Subject) -> dict[str, Any]:
    return {
        "engine": subject.engine,
        "dialect": subject.dialect or None,
        "precision": subject.precision,
    }


def _record(run: Run) -> dict[str, Any]:
    return _names(run.subject) | {
        "drafter": run.drafter,
        "category": run.item.category,
        "prompt_id": run.item.id,
        "repeat": run.repeat,
        "new_tokens": run.new_tokens,
        "seconds": run.seconds,
        "tokens_per_second": run.tokens_per_second,
        "acceptance_length": run.acceptance_length,
        "rounds": run.rounds,
        "undrafted_rounds": run.undrafted,
        "sources": {name: asdict(count) for name, count in run.counts.items()},
        "call_milliseconds": dict(run.milliseconds),
        "same_text": run.same_text,
        "first_token_seconds": run.first_token_seconds,
        "inter_token_seconds": _percentiles(run.gaps or [0.0]),
        "joules": run.joules,
    }


def _call(cost: CallCost) -> dict[str, Any]:
    milliseconds = spread(1000 * seconds for seconds in cost.seconds)
    return _names(cost.subject) | {
        "batch": cost.batch,
        "width": cost.width,
        "milliseconds": milliseconds,
    }


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median with the quartiles and the number of values."""
    ordered = np.sort([*values])
    low, middle, high = (float(np.quantile(ordered, share)) for share in (0.25, 0.5, 0.75))
    return {"median": middle, "q1": low, "q3": high, "n": len(ordered)}


def _percentiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": float(np.median(values)), "p95": float(np.quantile(values, 0.95))}
