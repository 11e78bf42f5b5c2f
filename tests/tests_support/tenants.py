"""Every drafter over engines without a model, and what became of each answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np

from specplug import Drafter, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.bundle import Block
from specplug.controller import CallCosts
from specplug.drafters import BlockSource, HeadSource, ModelDrafter, ModelSource, TreeDrafter
from specplug.drafters.source import CalledSource
from specplug.drafters.universal import IntersectionSource, ReencodingSource
from specplug.engines.fake import FakeEngine
from specplug.engines.host import HostScores
from specplug.generation import Generation
from specplug.opening import make_drafter
from specplug.translation import Translation
from specplug.types import HIDDEN_STATES, Step
from tests_support.languages import language
from tests_support.made_tokenizers import byte_level, spelling_of

TOKENIZER = byte_level(60)
VOCAB = TOKENIZER.get_vocab_size()
COSTS = {1: 1.0, 2: 1.02, 8: 1.3, 32: 3.0}
"""Seconds of a call by width, whatever its rows."""
COMMON = 9
"""Token ids below it are all that is ever said, so that texts repeat themselves."""


@cache
def said(seed: int, order: int = 2) -> Any:
    """A language of the common tokens alone."""
    inner = language(seed, order, vocab_size=COMMON)

    @cache
    def after(last: tuple[int, ...]) -> np.ndarray:
        return np.concatenate([inner(last) * 3, np.full(VOCAB - COMMON, -30.0)])

    return lambda prefix: after(prefix[-order:])


class _Thinking(FakeEngine):
    """Gives hidden states, which are its tokens; a head of it has its own."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.spec = replace(self.spec, hidden=(HIDDEN_STATES,), supports_block=True)

    def forward(self, step: Step) -> HostScores:
        states = np.repeat(step.tokens[..., None], 4, axis=2).astype(np.float32)
        return HostScores(super().forward(step).logits(), {HIDDEN_STATES: states})


def _sharing(target: FakeEngine, row: Any) -> FakeEngine:
    made = FakeEngine(row, vocab_size=VOCAB, max_batch=target.spec.max_batch)
    made._cache, made.spec = target._cache, replace(made.spec, shares_cache=True)
    return made


def _drafters() -> dict[str, Any]:
    def model(target: FakeEngine, rows: int) -> ModelDrafter:
        return ModelDrafter(FakeEngine(said(2), vocab_size=VOCAB, max_batch=rows))

    def own(target: FakeEngine, rows: int) -> TreeDrafter:
        return TreeDrafter("self", [ModelSource(_sharing(target, said(3)))])

    def head(target: FakeEngine, rows: int) -> TreeDrafter:
        engine = _Thinking(said(1, 1), vocab_size=VOCAB, max_batch=rows)
        return TreeDrafter("head", [HeadSource(engine)])

    def block(target: FakeEngine, rows: int) -> TreeDrafter:
        engine = _Thinking(said(4, 1), vocab_size=VOCAB, max_batch=rows)
        return TreeDrafter("head", [BlockSource(engine, Block(size=4, mask_token=1))])

    def universal(way: Any) -> Any:
        spelt = spelling_of(TOKENIZER)
        translation = Translation(spelt, spelt, target_size=VOCAB, draft_size=VOCAB)

        def make(target: FakeEngine, rows: int) -> TreeDrafter:
            engine = FakeEngine(said(5), vocab_size=VOCAB, max_batch=rows)
            return TreeDrafter("universal", [way(engine, translation)])

        return make

    made: dict[str, Any] = {
        name: lambda target, rows, name=name: make_drafter(name)
        for name in ("none", "ngram", "suffix", "recycle", "predicted", "auto")
    }
    several = {
        "draft": model,
        "self": own,
        "head": head,
        "head-block": block,
        "universal": universal(IntersectionSource),
        "universal-reencoding": universal(ReencodingSource),
    }
    for name, make in several.items():
        made[name] = make
        made[f"auto-{name}"] = lambda target, rows, make=make: make_drafter(
            "auto", draft=make(target, rows)
        )
    return made


DRAFTERS = _drafters()
"""By name, those with a draft also within ``auto``: made of a target and its rows."""


@contextmanager
def fixed_times() -> Iterator[None]:
    """What was measured of time is always the same."""
    still = SimpleNamespace(perf_counter=lambda: 0.0)
    with ExitStack() as stack:
        for module in ("generation", "decoder", "batching"):
            stack.enter_context(patch(f"specplug.{module}.time", still))
        stack.enter_context(patch.object(CallCosts, "observe", lambda *_: None))
        stack.enter_context(patch.object(CalledSource, "_timed", lambda *_: None))
        stack.enter_context(patch.object(CalledSource, "_seconds", 0.05))
        yield


@dataclass(frozen=True)
class Asked:
    """An answer that is asked for."""

    tenant: str
    prompt: tuple[int, ...]
    options: dict[str, Any]


Fate = tuple[list[tuple[int, str]], list[int], list[int]]
"""Of an answer: token ids with their origins, drafted and accepted tokens of each round."""


def _fate(tokens: Sequence[Any], stats: Any) -> Fate:
    origins = [(token.id, token.origin) for token in tokens]
    return origins, stats.drafted_per_round, stats.accepted_per_round


def _parts(drafter: str, rows: int, *, trees: bool) -> tuple[FakeEngine, Drafter]:
    target = _Thinking(said(1), vocab_size=VOCAB, max_batch=rows, trees=trees)
    return target, DRAFTERS[drafter](target, rows)


def one_by_one(drafter: str, asked: Sequence[Asked], draft_tokens: Any, *, trees: bool) -> Any:
    """What becomes of answers, one after another in one decoder."""
    target, made = _parts(drafter, 1, trees=trees)
    with fixed_times(), SpeculativeDecoder(
        target, drafter=made, draft_tokens=draft_tokens, costs=CallCosts(COSTS)
    ) as decoder:  # fmt: skip
        results = [
            decoder.generate(list(one.prompt), tenant=one.tenant, **one.options) for one in asked
        ]
    return [_fate(result.tokens, result.stats) for result in results]


@contextmanager
def _two_rows(drafter: str, draft_tokens: Any) -> Iterator[BatchDecoder]:
    target, made = _parts(drafter, 2, trees=False)
    with fixed_times(), BatchDecoder(
        target,
        drafter=made,
        draft_tokens=draft_tokens,
        costs=CallCosts(COSTS),
        batch_costs={1: COSTS, 2: COSTS},
    ) as decoder:  # fmt: skip
        yield decoder


def batched(drafter: str, groups: Sequence[Sequence[Asked]], draft_tokens: Any) -> list[Fate]:
    """What becomes of answers in a batch of two rows, each group of them at once."""
    found: dict[Generation, list[Any]] = {}
    with _two_rows(drafter, draft_tokens) as decoder:
        for group in groups:
            for one in group:
                found[decoder.submit(list(one.prompt), tenant=one.tenant, **one.options)] = []
            while not decoder.idle:
                for generation, tokens in decoder.step():
                    found[generation] += tokens
                    assert generation.error is None
    return [_fate(tokens, generation.stats) for generation, tokens in found.items()]


def beside(drafter: str, other: Asked, asked: Sequence[Asked], draft_tokens: Any) -> list[Fate]:
    """What becomes of answers while another one runs, which outlasts them."""
    with _two_rows(drafter, draft_tokens) as decoder:
        long = decoder.submit(list(other.prompt), tenant=other.tenant, max_tokens=2000)
        decoder.step()
        fates = []
        for one in asked:
            generation = decoder.submit(list(one.prompt), tenant=one.tenant, **one.options)
            tokens: list[Any] = []
            while generation.finish_reason is None:
                for each, some in decoder.step():
                    tokens += some if each is generation else []
                    assert each.error is None
            fates.append(_fate(tokens, generation.stats))
        assert long.finish_reason is None
    return fates
