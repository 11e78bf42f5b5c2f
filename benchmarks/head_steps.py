"""What a guess of a learned head costs, Python and sampling included, and where it goes.

    .venv/bin/python benchmarks/head_steps.py [--vocabularies 8192 16384] [--rounds 300]

Heads of random weights in SmolLM2-135M's shape, over 300 tokens of context. A round reads what the
target said of two tokens and guesses four in a chain, as a chain of drafts does, greedily; the
heads take turns, round by round. "first" is the round's first guess, the reading included, "next"
is each further one; "engine" is the engine's call alone in the latter, "graph" ONNX Runtime's.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import spread, write_result
from specplug import EngineOptions, Outcome, Proposal, Request, SamplingParams, Verdict
from specplug.drafters import HeadSource
from specplug.engines.host import HostScores
from specplug.engines.ort import OrtEngine
from specplug.export import graphs
from specplug.export.attention import Rotary
from specplug.export.head import Head, HeadShape
from specplug.export.head_component import keep_outliers
from specplug.export.head_graph import build_head
from specplug.export.rounding import apply_precision
from specplug.sampler import Sampler
from specplug.types import HIDDEN_STATES

TARGET_VOCABULARY, CONTEXT, GUESSES, ACCEPTED = 49_152, 300, 4, 1
_HALF = 32  # of the values of an attention head


def shape(vocab_size: int) -> HeadShape:
    """SmolLM2-135M's layer."""
    angles = np.outer(np.arange(2048), 1e5 ** (-np.arange(_HALF) / _HALF))
    return HeadShape(
        input_vocab_size=TARGET_VOCABULARY,
        vocab_size=vocab_size,
        layers=(2, 15, 27),
        target_size=576,
        hidden_size=576,
        intermediate_size=1536,
        heads=9,
        key_heads=3,
        head_size=64,
        epsilon=1e-5,
        rotary=Rotary(
            np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), interleaved=False
        ),
        max_length=2048,
    )


class Timed:
    """Calls of a function, timed."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call, self.seconds = call, 0.0

    def __call__(self, *given: Any) -> Any:
        started = time.perf_counter()
        made = self._call(*given)
        self.seconds = time.perf_counter() - started
        return made


class TimedSession:
    """ONNX Runtime's, whose runs are timed."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.run_with_iobinding = Timed(session.run_with_iobinding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class Subject:
    """A head in use."""

    def __init__(self, head: Head, precision: Any, folder: Path) -> None:
        graph = build_head(head)
        apply_precision(graph, precision, keep=keep_outliers(precision), same_at_any_width=False)
        graphs.save(graph, folder)
        self.nodes = len(list(graph.graph))
        self.features = head.shape.features
        self.engine = OrtEngine(
            folder / graphs.GRAPH,
            cache=graphs.cache_layout(graph),
            vocab_size=head.shape.vocab_size,
            max_length=head.shape.max_length,
            min_width=1,
            input_vocab_size=TARGET_VOCABULARY,
            options=EngineOptions(allow_narrow=True),
        )
        self.session = self.engine._session = TimedSession(self.engine._session)
        self.call = self.engine.forward = Timed(self.engine.forward)  # type: ignore[method-assign]
        random = np.random.default_rng(0)
        ids = random.choice(TARGET_VOCABULARY, size=head.shape.vocab_size, replace=False)
        self.source = HeadSource(self.engine, np.sort(ids).astype(np.int32))
        self._random = random
        self.begin()

    def begin(self) -> None:
        """A new sequence."""
        self._tokens = self._random.integers(0, TARGET_VOCABULARY, size=CONTEXT)
        sampler = Sampler(SamplingParams(), vocab_size=TARGET_VOCABULARY, prompt_tokens=CONTEXT)
        self.source.reset(Request(sampler=sampler, prompt_tokens=CONTEXT))
        self.source.observe(0, self._tokens[:-1].tolist(), self._scores(CONTEXT - 1))
        self.source.guesses(self.source.begin(self._tokens))
        self.round()  # whose first guess is made already

    def _scores(self, tokens: int) -> HostScores:
        states = self._random.normal(size=(1, tokens, self.features)).astype(np.float32)
        return HostScores(np.empty((1, 0, 0), dtype=np.float32), {HIDDEN_STATES: states})

    def round(self) -> dict[str, list[float]]:
        """Draft, and take some of the drafts: seconds of its guesses, by what was timed."""
        taken: dict[str, list[float]] = {"first": [], "next": [], "engine": [], "graph": []}
        place, drafted = self.source.begin(self._tokens), []
        for number in range(GUESSES):
            started = time.perf_counter()
            guess = self.source.guesses(place)[0]
            taken["next" if number else "first"].append(time.perf_counter() - started)
            if number:
                taken["engine"].append(self.call.seconds)
                taken["graph"].append(self.session.run_with_iobinding.seconds)
            place = self.source.step(place, guess.token)
            drafted.append(guess.token)
        last, bonus = int(self._tokens[-1]), int(self._random.integers(TARGET_VOCABULARY))
        scores = self._scores(1 + GUESSES)
        self.source.observe(len(self._tokens) - 1, [last], scores)
        verdict = Verdict(tuple(range(ACCEPTED)), bonus)
        tokens = [*drafted[:ACCEPTED], bonus]
        self.source.commit(Outcome(last, Proposal(tuple(drafted)), verdict, tokens, scores))
        self._tokens = np.append(self._tokens, tokens)
        if len(self._tokens) > CONTEXT + 50:
            self.begin()
        return taken


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocabularies", nargs="+", type=int, default=[8192, 16384])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "w8a8"])
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--name", default="head_steps")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        subjects = {
            (precision, size): Subject(
                Head(shape(size)), precision, Path(place) / f"{precision}-{size}"
            )
            for size in arguments.vocabularies
            for precision in arguments.precisions
        }
        taken: dict[Any, dict[str, list[float]]] = {key: {} for key in subjects}
        for _ in range(arguments.rounds):
            for key, subject in subjects.items():
                for what, seconds in subject.round().items():
                    taken[key].setdefault(what, []).extend(1e3 * each for each in seconds)
    found = []
    for (precision, size), times in taken.items():
        figures = {what: spread(each) | {"least": min(each)} for what, each in times.items()}
        print(
            f"{precision}, {size} tokens: "
            + ", ".join(
                f"{what} {figure['median']:.3f} ms (least {figure['least']:.3f})"
                for what, figure in figures.items()
            )
        )
        nodes = subjects[precision, size].nodes
        found.append({"precision": precision, "vocab_size": size, "nodes": nodes, **figures})
    settings = {"context": CONTEXT, "guesses": GUESSES, "unit": "ms a guess"}
    print(write_result(arguments.name, {**settings, "heads": found}))


if __name__ == "__main__":
    main()
