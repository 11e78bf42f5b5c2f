"""Which of a target's layers to draft with, by its own answers to a user's prompts."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

import numpy as np

from specplug import engines
from specplug.bundle import Bundle, ChosenLayers
from specplug.controller import CallCosts
from specplug.decoder import SpeculativeDecoder
from specplug.drafters import ModelDrafter
from specplug.export.judging import LayerJudge, Place, Text, write_gated
from specplug.export.skipping import check_bundle, make_draft, scratch
from specplug.feeding import feed
from specplug.machine import cores, cpu_name
from specplug.opening import EngineOptions, make_drafter
from specplug.skip_search import (
    LONGEST,
    MAX_TOKENS,
    SECONDS,
    Candidate,
    Found,
    Layers,
    RoundCosts,
    Runs,
    search_layers,
)
from specplug.types import ContextLimitError, Engine, ExportError

WORTH = 1.02
"""Times plain decoding's speed that a draft has to be expected to give, to be written."""

_PLACES = (512, 256, 128, 64)  # at which every set is judged
_SETS_A_LAYER = 5  # that there should be time for
_COST_SECONDS = 3.0  # of measuring calls
_LEAST_REPEATS, _MOST_REPEATS = 4, 40
_GUESS = 0  # among the widths


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceOptions:
    """How to choose."""

    seconds: float = SECONDS
    """Of the search, once the target has answered."""
    seed: int = 0
    """Of the places that sets are judged at, and of the order in which they are tried."""
    max_tokens: int = MAX_TOKENS
    """Of each answer."""
    places: int | None = None
    """At which every set is judged; None: what there is time for."""
    threads: int | None = None
    """As in :class:`specplug.opening.EngineOptions`."""

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise ValueError(f"seconds {self.seconds}: a search needs some")
        if self.max_tokens < 2:
            raise ValueError(f"max_tokens {self.max_tokens}: a draft needs at least 2 to guess at")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed}: it must be in [0, 2**63)")
        if self.places is not None and self.places < 1:
            raise ValueError(f"places {self.places}: need at least 1")


@dataclass(frozen=True, slots=True)
class Choice:
    """The best layers that were found, and what they gave in real rounds."""

    layers: Layers
    """Those that are kept, ascending."""
    chosen: ChosenLayers
    target_seconds: float
    """Of a call of one token."""
    draft_seconds: float
    """Of a guess."""
    finished: bool
    """Whether the search came to its end before its time."""

    @property
    def gain(self) -> float:
        """Times plain decoding's speed."""
        return self.chosen.tokens_per_second / self.chosen.plain_tokens_per_second

    @property
    def pays(self) -> bool:
        """Whether it is worth being written, on this machine."""
        return self.gain >= WORTH


class Watcher:
    """Told how the choosing goes on; the base tells nobody."""

    def doing(self, what: str, done: float) -> None:
        """A stage, and the share of it that is done."""

    def searching(self, tried: int, best: Candidate, costs: RoundCosts, left: float) -> None:
        """Sets that were tried, the best of them, and the seconds that are left."""


def choose_layers(
    bundle: Bundle,
    prompts: Sequence[str],
    options: ChoiceOptions,
    watcher: Watcher | None = None,
) -> Choice:
    """Find the layers that make the most of drafting; the bundle stays as it is.

    Args:
        bundle: opened, of onnxruntime.
        prompts: of the user; put through the chat template if the bundle has one.
        options: how.
        watcher: told how it goes.

    Raises:
        ExportError: the target is of a form whose layers cannot be skipped.
        ContextLimitError: a prompt and its answer do not fit into the context.
        ValueError: no prompts, no tokenizer, or answers too short to judge by.
        EngineError: a backend failed.
    """
    check_bundle(bundle, force=True)
    if not prompts:
        raise ValueError("no prompts: give at least one")
    choosing = _Choosing(bundle, options, watcher or Watcher())
    texts, costs = choosing.answered(prompts)
    found = choosing.search(texts, costs)
    return choosing.confirmed(prompts, texts, found)


class _Choosing:
    """The stages, each over engines of its own: two are in memory at a time at most."""

    def __init__(self, bundle: Bundle, options: ChoiceOptions, watcher: Watcher) -> None:
        self._bundle, self._options, self._watcher = bundle, options, watcher
        self._target = bundle.manifest.target
        self._engine_options = EngineOptions(threads=options.threads, share_threads=True)

    def answered(self, prompts: Sequence[str]) -> tuple[list[Text], RoundCosts]:
        """The target's greedy answers, and what calls cost after as many tokens."""
        with ExitStack() as stack:
            target = self._open_target(stack)
            texts = self._answers(target, prompts)
            layers = self._target.cache.layers
            half = (layers + 1) // 2
            draft = self._open_draft(stack, target, tuple(range(half)))
            self._watcher.doing("measuring calls", 0)
            costs, seconds = _measure(target, draft, _usual_length(texts))
        return texts, RoundCosts.of(costs, layers, half, seconds)

    def _answers(self, target: Engine, prompts: Sequence[str]) -> list[Text]:
        decoder = SpeculativeDecoder(
            target, drafter=make_drafter("auto"), tokenizer=self._bundle.tokenizer()
        )
        most, limit = self._options.max_tokens, target.spec.context_limit
        texts = []
        for number, prompt in enumerate(prompts):
            self._watcher.doing("answering the prompts", number / len(prompts))
            tokens = decoder.encode(prompt)
            if len(tokens) + most + LONGEST > limit:
                raise ContextLimitError(
                    f"prompt {number + 1} has {len(tokens)} tokens, and with {most} of an answer "
                    f"and {LONGEST} drafted ones the context of {limit} is full: shorten it"
                )
            made = decoder.generate(tokens, max_tokens=most).token_ids
            texts.append(Text(np.array([*tokens, *made], dtype=np.int64), len(tokens)))
        if not any(text.starts for text in texts):
            raise ValueError(
                "the target answers every prompt with a token or two: nothing to draft, and "
                "nothing to choose layers by; give prompts that it answers at length"
            )
        return texts

    def search(self, texts: Sequence[Text], costs: RoundCosts) -> Found:
        """The best layers, over all sets that there is time for."""
        with scratch(self._bundle, "gated") as graph:
            self._watcher.doing("reading the answers", 0)
            write_gated(self._bundle.path / self._target.graph, graph)
            judge = LayerJudge(graph, self._target, self._engine_options, texts)
            try:
                places = self._places(judge)
                return search_layers(
                    self._target.cache.layers,
                    lambda layers: judge(layers, places),
                    costs,
                    seconds=self._options.seconds,
                    seed=self._options.seed,
                    report=lambda tried, best, left: self._watcher.searching(
                        tried, best, costs, left
                    ),
                )
            finally:
                judge.close()

    def _places(self, judge: LayerJudge) -> list[Place]:
        """As many places as there is time to judge some sets for every layer at."""
        seed = self._options.seed
        if self._options.places is not None:
            return judge.places(self._options.places, seed)
        few, layers = judge.places(_PLACES[-1], seed), self._target.cache.layers
        middle = tuple(layer for layer in range(layers) if layer != layers // 2)
        judge(middle, few)  # sets the shapes up
        started = time.perf_counter()
        judge(middle, few)
        each = (time.perf_counter() - started) / len(few)
        affordable = self._options.seconds / (_SETS_A_LAYER * layers * each)
        most = next((number for number in _PLACES if number <= affordable), _PLACES[-1])
        return judge.places(most, seed)

    def confirmed(self, prompts: Sequence[str], texts: Sequence[Text], found: Found) -> Choice:
        """What real rounds with these layers give, and that they leave the text as it is."""
        best = found.best
        with ExitStack() as stack:
            target = self._open_target(stack)
            draft = self._open_draft(stack, target, best.layers)
            decoder = SpeculativeDecoder(
                target,
                drafter=ModelDrafter(draft),
                draft_tokens=best.draft_tokens,
                tokenizer=self._bundle.tokenizer(),
            )
            tested, right = [0] * best.draft_tokens, [0] * best.draft_tokens
            for number, text in enumerate(texts):
                self._watcher.doing("drafting with the best layers", number / len(texts))
                answer = text.tokens[text.answer :].tolist()
                result = decoder.generate(
                    text.tokens[: text.answer].tolist(), max_tokens=self._options.max_tokens
                )
                if list(result.token_ids) != answer:
                    _refuse(best.layers, number)
                rounds = result.stats
                for drafted, accepted in zip(
                    rounds.drafted_per_round, rounds.accepted_per_round, strict=True
                ):
                    for place in range(min(drafted, accepted + 1)):
                        tested[place] += 1
                        right[place] += place < accepted
            self._watcher.doing("measuring calls", 1)
            costs, seconds = _measure(target, draft, _usual_length(texts))
        runs = Runs(tuple(tested), tuple(right))
        drafted = best.draft_tokens
        speed = runs.tokens / (costs[drafted + 1] + drafted * seconds)
        chosen = ChosenLayers(
            prompts=len(prompts),
            prompts_sha256=hashlib.sha256(json.dumps([*prompts]).encode()).hexdigest(),
            answer_tokens=sum(len(text.tokens) - text.answer for text in texts),
            seed=self._options.seed,
            tried=found.tried,
            draft_tokens=drafted,
            chances=[round(chance, 4) for chance in runs.chances],
            tokens_per_second=round(speed, 3),
            plain_tokens_per_second=round(1 / costs[1], 3),
            machine=f"{cpu_name()}, {cores()} cores",
        )
        return Choice(best.layers, chosen, costs[1], seconds, found.finished)

    def _open_target(self, stack: ExitStack) -> Engine:
        engine = engines.load(self._bundle.path, self._target, self._engine_options)
        stack.callback(engine.close)
        return engine

    def _open_draft(self, stack: ExitStack, target: Engine, layers: Layers) -> Engine:
        graph = stack.enter_context(scratch(self._bundle, "draft"))
        component = make_draft(self._bundle, layers, graph)
        options = EngineOptions(threads=self._options.threads, share_threads=True, beside=target)
        engine = engines.load(self._bundle.path, component, options)
        stack.callback(engine.close)
        return engine


def _usual_length(texts: Sequence[Text]) -> int:
    return int(np.median([len(text.tokens) for text in texts]))


def _measure(target: Engine, draft: Engine, past: int) -> tuple[CallCosts, float]:
    """Seconds of the target's calls by width, and of a draft's guess, after ``past`` tokens.

    Taken in turn: what else the machine does then makes all of them slower alike.
    """
    tokens = np.random.default_rng(0).integers(0, target.spec.vocab_size, size=LONGEST + past + 1)
    feed(target, tokens[:past].tolist(), past=0, scored=1)
    calls: dict[int, Callable[[], object]] = {
        width: partial(_verify, target, tokens[past : past + width].tolist(), past)
        for width in range(1, LONGEST + 2)
    }
    calls[_GUESS] = partial(_guess, draft, tokens[past : past + 1].tolist(), past)
    taken: dict[int, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + _COST_SECONDS
    for repeat in range(_MOST_REPEATS):
        if repeat > _LEAST_REPEATS and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            taken[name].append(time.perf_counter() - started)
    # The first calls set their shapes up; of a busy machine the lower quartile tells more.
    usual = {name: sorted(each[1:])[(len(each) - 1) // 4] for name, each in taken.items()}
    guess = usual.pop(_GUESS)
    return CallCosts(usual, LONGEST + 1), guess


def _verify(engine: Engine, tokens: Sequence[int], past: int) -> object:
    return feed(engine, tokens, past=past, scored=len(tokens)).argmax()


def _guess(engine: Engine, tokens: Sequence[int], past: int) -> object:
    """What :class:`specplug.drafters.ModelSource` does for one."""
    scores = feed(engine, tokens, past=past, scored=1)
    row = scores.logits()[0, 0]
    return scores.argmax(), np.exp(row - row.max()).sum()


def _refuse(layers: Layers, prompt: int) -> NoReturn:
    raise ExportError(
        f"drafting with the layers {layers} changed the target's answer to prompt {prompt + 1}, "
        "which no draft may do: run specplug verify, and do not use this bundle if it fails"
    )
