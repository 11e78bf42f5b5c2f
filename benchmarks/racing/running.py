"""Running a race: who still has to answer what, in which order, and what each is like alone."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from racing.quality import compare
from racing.records import Records
from racing.systems import System
from racing.workers import Worker
from specplug.bench.calls import SETTLE
from specplug.bench.machine import EnergyMeter

_WARM_UP_TOKENS = 16

Start = Callable[[System], Worker]


@dataclass(frozen=True, slots=True)
class Prompt:
    """What every system is asked."""

    id: str
    group: str
    token_ids: list[int]


@dataclass(frozen=True, slots=True)
class Race:
    """Systems, prompts, and the records of what was run already."""

    systems: Sequence[System]
    prompts: Sequence[Prompt]
    records: Records
    alone: Records
    """What each system is like alone, whatever the workload."""
    max_tokens: int
    few: int
    """Prompts of a group that slow systems answer."""
    sample: list[int]
    """Token ids of text that no prompt holds: to warm up with, and to measure quality on."""
    start: Start

    def entrants(self, prompt: Prompt) -> list[System]:
        """Who answers a prompt, in its order: each prompt begins with another system."""
        number = self.prompts.index(prompt)
        before = Counter(other.group for other in self.prompts[:number])[prompt.group]
        there = [system for system in self.systems if not system.slow or before < self.few]
        turn = number % len(there) if there else 0
        return there[turn:] + there[:turn]

    def left(self) -> list[tuple[Prompt, list[System]]]:
        """Prompts that somebody has yet to answer, and who."""
        answered = {(record["prompt"], record["system"]) for record in self.records.of("answer")}
        missing = [
            (prompt, [s for s in self.entrants(prompt) if (prompt.id, s.name) not in answered])
            for prompt in self.prompts
        ]
        return [(prompt, systems) for prompt, systems in missing if systems]

    def run(self, most: int | None, advance: Callable[[str], None]) -> None:
        """Have the next prompts answered, at most so many.

        Args:
            most: prompts; None: all that are left.
            advance: told a line after every prompt.
        """
        left = self.left()
        todo = left[:most]
        wanted = {system.name for _, systems in todo for system in systems}
        with ExitStack() as stack:
            workers = {
                system.name: stack.enter_context(self._warm(system))
                for system in self.systems
                if system.name in wanted
            }
            for number, (prompt, systems) in enumerate(todo, 1):
                for system in systems:
                    self._answer(workers[system.name], prompt)
                advance(f"{prompt.id}: {len(left) - number} prompts left")

    def _warm(self, system: System) -> Worker:
        worker = self.start(system)
        worker.generate(self.sample[: 4 * _WARM_UP_TOKENS], _WARM_UP_TOKENS)
        self.records.add("worker", system=system.name, versions=worker.versions)
        return worker

    def _answer(self, worker: Worker, prompt: Prompt) -> None:
        meter = EnergyMeter()
        time.sleep(SETTLE)
        before = meter.read()
        answer = worker.generate(prompt.token_ids, self.max_tokens)
        self.records.add(
            "answer",
            prompt=prompt.id,
            group=prompt.group,
            system=worker.system.name,
            prompt_tokens=len(prompt.token_ids),
            joules=meter.joules(before),
            **answer,
        )

    def look_at_each(self, folder: Path, advance: Callable[[str], None]) -> None:
        """Measure every system by itself: its memory and, of those that decode plainly, quality.

        Memory is what the process holds after a short answer, and the most it held by the end of
        an answer to the longest prompt. Quality is against the fp32 system's logits, one token a
        call as in decoding.

        Args:
            folder: for logits, which can be large; the fp32 ones stay there.
            advance: told a line after every system.

        Raises:
            ValueError: no system is in fp32, and its logits are not there yet.
        """
        reference = folder / f"{self.alone.path.stem}_reference_{len(self.sample)}.npy"
        if not reference.exists() and self._reference_first()[0].precision != "fp32":
            raise ValueError("quality is measured against fp32: let an fp32 system take part first")
        longest = max(self.prompts, key=lambda prompt: len(prompt.token_ids))
        known = {record["system"] for record in self.alone.of("alone")}
        for system in self._reference_first():
            if system.name in known and reference.exists():
                continue
            with self._warm(system) as worker:
                found = {"pss": worker.memory()["pss"]}
                worker.generate(longest.token_ids, self.max_tokens)
                found["peak_rss"] = worker.memory()["peak_rss"]
                quality = None
                if system.plain is None:
                    rows = folder / f"{self.alone.path.stem}_rows.npy"
                    worker.write_logits(self.sample, rows)
                    if not reference.exists():
                        rows.rename(reference)
                        rows = reference
                    quality = compare(reference, rows)
                    if rows != reference:
                        rows.unlink()
            if system.name not in known:
                self.alone.add("alone", system=system.name, memory=found, quality=quality)
            advance(f"{system.name}: {found} {quality}")

    def _reference_first(self) -> list[System]:
        """The systems, with the one first that the others' quality is measured against."""

        def place(system: System) -> tuple[bool, bool, bool]:
            return system.plain is not None, system.precision != "fp32", system.tool != "specplug"

        return sorted(self.systems, key=place)
