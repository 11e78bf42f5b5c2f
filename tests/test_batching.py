"""Many generations at once: each one's text is what it is alone, whatever happens around it."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import (
    ContextLimitError,
    Drafter,
    EngineError,
    NgramDrafter,
    SamplingParams,
    SpecplugError,
    SpeculativeDecoder,
)
from specplug.batching import BatchDecoder
from specplug.context import Token
from specplug.drafters import ModelDrafter, NoDrafter
from specplug.engines.fake import FakeEngine
from specplug.generation import Generation
from specplug.generation_options import DraftTokens
from specplug.history import History
from specplug.opening import make_drafter
from specplug.prefixes import PIECE
from tests_support.batching import drain, ids
from tests_support.languages import language

VOCAB = 6
table = partial(language, vocab_size=VOCAB)
COSTS = {1: {1: 1.0, 8: 1.1}, 2: {1: 1.1, 8: 1.5}, 4: {1: 1.2, 8: 3.0}, 5: {1: 1.3, 8: 4.0}}


def drafter_of(name: str, row: Any, rows: int, min_width: int = 1) -> Drafter:
    if name == "none":
        return NoDrafter()
    draft = None
    if name in ("draft", "both"):
        draft = ModelDrafter(FakeEngine(row, vocab_size=VOCAB, max_batch=rows, min_width=min_width))
        if name == "draft":
            return draft
    return make_drafter("auto", draft=draft, history=History())


@st.composite
def requests(draw: Any) -> dict[str, Any]:
    """What may be asked, and when: after how many steps it comes, and perhaps goes."""
    shared = [draw(st.integers(0, VOCAB - 1))] * draw(st.sampled_from([0, 0, PIECE, 2 * PIECE + 3]))
    tail = draw(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12))
    options: dict[str, Any] = {"max_tokens": draw(st.integers(1, 24))}
    if draw(st.booleans()):
        options["sampling"] = SamplingParams(
            temperature=draw(st.sampled_from([0.5, 1.0])), seed=draw(st.integers(0, 99))
        )
    if draw(st.booleans()):
        options["logprobs"] = 1
        options["echo"] = draw(st.booleans())
    if draw(st.booleans()):
        options["prediction"] = draw(st.lists(st.integers(0, VOCAB - 1), max_size=20))
    options["tenant"] = draw(st.sampled_from(["", "other"]))
    options["speculation"] = draw(st.sampled_from([True, True, False]))
    return {
        "prompt": [*shared, *tail],
        "options": options,
        "comes": draw(st.integers(0, 12)),
        "goes": draw(st.one_of(st.none(), st.integers(0, 30))),
    }


@given(
    asked=st.lists(requests(), min_size=1, max_size=9),
    seed=st.integers(0, 1000),
    rows=st.integers(1, 5),
    min_width=st.integers(1, 3),
    name=st.sampled_from(["none", "auto", "draft", "both"]),
    k=st.sampled_from(["auto", 0, 1, 5]),
    stop=st.sets(st.integers(0, VOCAB - 1), max_size=1),
    cache=st.sampled_from([0, 3 * PIECE * 8, 1 << 20]),
)
@settings(max_examples=300, deadline=None)
def test_each_text_is_its_own(asked, seed, rows, min_width, name, k, stop, cache) -> None:
    """The fake engine refuses a past that was never written, so lost entries are found, too."""
    row = table(seed)

    def engine(max_batch: int) -> FakeEngine:
        return FakeEngine(
            row, vocab_size=VOCAB, max_batch=max_batch, min_width=min_width, trees=True
        )

    decoder = BatchDecoder(
        engine(rows),
        drafter=drafter_of(name, row, rows, min_width),
        draft_tokens=k,
        stop_token_ids=sorted(stop),
        batch_costs=COSTS,
        prefix_cache_bytes=cache,
    )
    alone = SpeculativeDecoder(engine(1), stop_token_ids=sorted(stop))
    made: dict[Generation, list[Token]] = {}
    submitted: dict[int, Generation] = {}
    ended = set()
    number = 0
    while number <= 12 or not decoder.idle:
        for index, request in enumerate(asked):
            if request["comes"] == number:
                submitted[index] = decoder.submit(request["prompt"], **request["options"])
            if request["goes"] == number and index in submitted:
                submitted[index].cancel()
        for generation, tokens in decoder.step():
            assert generation not in ended
            made.setdefault(generation, []).extend(tokens)
            if generation.finish_reason is not None:
                ended.add(generation)
        number += 1
    assert ended == set(submitted.values())
    assert (decoder.running, decoder.waiting, len(decoder._free)) == (0, 0, rows)
    assert decoder.prefixes.bytes <= cache
    for index, generation in submitted.items():
        assert generation.error is None
        expected = alone.generate(asked[index]["prompt"], **asked[index]["options"])
        found = made[generation]
        if generation.finish_reason == "cancelled":
            assert ids(found) == ids(list(expected.tokens[: len(found)]))
            continue
        assert ids(found) == list(expected.token_ids)
        assert generation.finish_reason == expected.finish_reason
        assert generation.stats.new_tokens == len(found) - (
            len(generation.prompt) if generation.echo else 0
        )
        assert [token.logprobs for token in found] == [t.logprobs for t in expected.tokens]
        if not generation.speculation:
            assert generation.stats.drafted == 0


def test_rows_share_one_call() -> None:
    """Eight generations take about as many calls as one, not eight times as many."""
    target = FakeEngine(table(1), vocab_size=VOCAB, max_batch=8)
    decoder = BatchDecoder(target)
    for first in range(8):
        decoder.submit([first % VOCAB], max_tokens=20)
    found = drain(decoder)
    assert [len(tokens) for tokens in found.values()] == [20] * 8
    assert len(target.steps) <= 8 + 20 + 8  # prompts, rounds, and those of late beginners
    assert max(step.tokens.shape[0] for step in target.steps) == 8


def test_a_long_prompt_does_not_stop_the_others() -> None:
    """Between any two pieces of it every running generation gets a token."""
    target = FakeEngine(table(1), vocab_size=VOCAB, max_batch=2)
    decoder = BatchDecoder(target)
    first = decoder.submit([1, 2], max_tokens=50)
    decoder.step()
    second = decoder.submit([3] * (10 * PIECE), max_tokens=2)
    gaps = []
    while second.stats.new_tokens == 0:
        gaps.append({generation for generation, _ in decoder.step()})
    assert len(gaps) == 10
    assert all(first in gap for gap in gaps)
    widths = [step.tokens.shape[1] for step in target.steps if step.first_row == 1]
    assert widths == [PIECE] * 10


def test_pieces_are_the_same_whatever_the_load() -> None:
    """And whether or not the beginning is known: what is left to read begins at a whole piece."""
    target = FakeEngine(table(1), vocab_size=VOCAB, max_batch=2)
    decoder = BatchDecoder(target)
    prompt = [n % VOCAB for n in range(3 * PIECE + 5)]
    calls = []
    for cached in (0, 3 * PIECE):
        generation = decoder.submit(prompt, max_tokens=1)
        before = len(target.steps)
        drain(decoder)
        assert generation.cached_tokens == cached
        calls.append([(int(s.past[0]), s.tokens.shape[1]) for s in target.steps[before:]])
    assert calls == [[(0, PIECE), (PIECE, PIECE), (2 * PIECE, PIECE), (3 * PIECE, 5)], [(192, 5)]]
    decoder.submit(prompt[: 2 * PIECE], max_tokens=1)
    before = len(target.steps)
    drain(decoder)
    # The last piece is read again, for its last token's scores.
    assert [int(step.past[0]) for step in target.steps[before:]] == [PIECE]


class Broken(FakeEngine):
    """Fails at a call."""

    fails_at = -1

    def forward(self, step: Any) -> Any:
        if len(self.steps) == self.fails_at:
            self.fails_at = -1
            raise EngineError("the device is lost")
        return super().forward(step)


@pytest.mark.parametrize("call", range(8))
def test_a_failing_call_ends_those_it_was_for(call: int) -> None:
    """The others, and later ones, are answered."""
    target = Broken(table(2), vocab_size=VOCAB, max_batch=3)
    target.fails_at = call
    decoder = BatchDecoder(target)
    first = [decoder.submit([n], max_tokens=6) for n in range(3)]
    drain(decoder)
    failed = [generation for generation in first if generation.error]
    assert failed
    assert all(g.finish_reason == "error" and "lost" in str(g.error) for g in failed)
    assert all(g.finish_reason == "length" for g in first if g not in failed)
    after = decoder.submit([1], max_tokens=6)
    found = drain(decoder)[after]
    assert ids(found) == list(
        SpeculativeDecoder(FakeEngine(table(2), vocab_size=VOCAB))
        .generate([1], max_tokens=6)
        .token_ids
    )


def test_a_failing_row_ends_alone() -> None:
    """Such as one whose rules leave no token to choose."""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        if prefix[0] == 5 and len(prefix) > 4:
            return np.full(VOCAB, np.nan)
        return table(3)(prefix)

    decoder = BatchDecoder(FakeEngine(row, vocab_size=VOCAB, max_batch=3))
    sampled = SamplingParams(temperature=1.0)
    made = [decoder.submit([n], max_tokens=9, sampling=sampled) for n in (4, 5, 3)]
    found = drain(decoder)
    assert [generation.finish_reason for generation in made] == ["length", "error", "length"]
    assert len(found[made[0]]) == len(found[made[2]]) == 9


def test_a_drafter_that_fails_ends_its_own_row_alone() -> None:
    """Whenever it does: at a request's beginning, too."""

    class Fragile(NoDrafter):
        def reset(self, request: Any) -> None:
            if request.prompt_tokens == 2:
                raise RuntimeError("no such text")

    target = FakeEngine(table(1), vocab_size=VOCAB, max_batch=2)
    decoder = BatchDecoder(target, drafter=Fragile())
    made = [decoder.submit(prompt, max_tokens=5) for prompt in ([1], [1, 2], [3])]
    drain(decoder)
    assert [generation.finish_reason for generation in made] == ["length", "error", "length"]
    assert "no such text" in str(made[1].error)
    assert len(decoder._free) == 2


def test_wrong_requests_are_refused_at_once() -> None:
    decoder = BatchDecoder(FakeEngine(table(1), vocab_size=VOCAB, max_length=32, max_batch=2))
    with pytest.raises(ValueError, match="outside the vocabulary"):
        decoder.submit([VOCAB])
    with pytest.raises(ContextLimitError, match="shorten the prompt"):
        decoder.submit([1] * 32)
    with pytest.raises(ValueError, match="max_tokens 0"):
        decoder.submit([1], max_tokens=0)
    assert decoder.idle


def test_rows_near_the_end_of_the_context() -> None:
    """A call is as wide as the fullest row has room for, and no answer is cut short."""
    row = table(4)
    target = FakeEngine(row, vocab_size=VOCAB, max_length=40, max_batch=3)
    decoder = BatchDecoder(target, drafter=NgramDrafter(prompt_lookup_min=1), draft_tokens=7)
    alone = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB, max_length=40))
    prompts = [[1, 2] * 15, [3] * 20, [4]]
    made = [decoder.submit(prompt, max_tokens=100) for prompt in prompts]
    found = drain(decoder)
    for generation, prompt in zip(made, prompts, strict=True):
        expected = alone.generate(prompt, max_tokens=100)
        assert (ids(found[generation]), generation.finish_reason) == (
            list(expected.token_ids),
            "context",
        )


def test_drafters_that_cannot_fork_are_refused() -> None:
    class Own(Drafter):
        name = "own"

    with pytest.raises(SpecplugError, match="'own' cannot serve several sequences"):
        BatchDecoder(FakeEngine(table(1), vocab_size=VOCAB, max_batch=2), drafter=Own())
    single = BatchDecoder(FakeEngine(table(1), vocab_size=VOCAB), drafter=Own())
    single.submit([1], max_tokens=3)
    assert len(next(iter(drain(single).values()))) == 3
    with pytest.raises(SpecplugError, match="has 1 rows"):
        BatchDecoder(
            FakeEngine(table(1), vocab_size=VOCAB, max_batch=2),
            drafter=ModelDrafter(FakeEngine(table(1), vocab_size=VOCAB)),
        )


def test_engines_that_cannot_move_rows_are_refused() -> None:
    class Fixed:
        spec = FakeEngine(table(1), vocab_size=VOCAB, max_batch=2).spec

        def forward(self, step: Any) -> Any: ...

        def close(self) -> None: ...

    with pytest.raises(EngineError, match="cannot move rows"):
        BatchDecoder(Fixed())


def test_submitting_and_cancelling_from_other_threads() -> None:
    """While one thread steps."""
    decoder = BatchDecoder(FakeEngine(table(1), vocab_size=VOCAB, max_batch=4))
    submitted: list[Generation] = []

    def ask(start: int) -> None:
        for number in range(25):
            generation = decoder.submit([(start + number) % VOCAB], max_tokens=1 + number % 7)
            submitted.append(generation)
            if number % 5 == 0:
                generation.cancel()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    ended = 0
    while ended < 100:
        ended += sum(g.finish_reason is not None for g, _ in decoder.step())
    for thread in threads:
        thread.join()
    assert decoder.idle
    assert len(submitted) == 100
    assert {g.finish_reason for g in submitted} <= {"length", "cancelled"}


# --- draft lengths ----------------------------------------------------------------------------


def drafted_by(costs: dict[int, float], prompts: list[list[int]], row: Any) -> list[float]:
    """Mean drafted tokens a round of each generation."""
    decoder = BatchDecoder(
        FakeEngine(row, vocab_size=VOCAB, max_batch=len(prompts)),
        drafter=make_drafter("auto"),
        batch_costs=dict.fromkeys(range(1, len(prompts) + 1), costs),
    )
    made = [decoder.submit(prompt, max_tokens=120) for prompt in prompts]
    drain(decoder)
    return [g.stats.drafted / g.stats.rounds for g in made]


def circle(prefix: tuple[int, ...]) -> np.ndarray:
    """Every token has one successor."""
    return np.eye(VOCAB)[(prefix[-1] + 1) % VOCAB]


def noise(prefix: tuple[int, ...]) -> np.ndarray:
    return table(7, order=12)(prefix)


def test_drafts_follow_what_the_whole_call_costs() -> None:
    """Free width: sure texts draft much. Dear width: nobody drafts, however sure."""
    assert min(drafted_by({1: 1.0, 32: 1.001}, [[0]] * 3, circle)) > 5
    assert max(drafted_by({1: 1.0, 2: 2.5, 32: 64.0}, [[0]] * 3, circle)) < 0.2


def test_one_sure_row_among_unsure_ones_is_not_worth_a_wide_call() -> None:
    """Unless width is cheap: its gain is one row's, the cost everybody's."""

    def mixed(prefix: tuple[int, ...]) -> np.ndarray:
        return circle(prefix) if prefix[0] == 0 else noise(prefix)

    prompts = [[0], [1], [2], [3], [4], [5]]
    cheap = drafted_by({1: 1.0, 32: 1.3}, prompts, mixed)
    dear = drafted_by({1: 1.0, 2: 1.5, 32: 16.5}, prompts, mixed)
    assert cheap[0] > 2
    assert dear[0] < 0.5


# --- prefixes ---------------------------------------------------------------------------------


# --- real engines -----------------------------------------------------------------------------


def compare(
    bundle: Path, prompts: list[str], draft_tokens: DraftTokens = "auto", **options: Any
) -> None:
    """Greedy and sampled answers in a batch are those of one decoder, alone."""
    with (
        BatchDecoder.from_bundle(bundle, max_batch=4, draft_tokens=draft_tokens, **options) as many,
        SpeculativeDecoder.from_bundle(bundle, drafter="none", **options) as one,
    ):
        asked = []
        for number in range(len(prompts)):
            sampling = SamplingParams(temperature=0.8 * (number % 2), seed=number)
            asked.append({"max_tokens": 16 + 5 * number, "sampling": sampling})
        made = [
            many.submit(many.encode(prompt), **each)
            for prompt, each in zip(prompts, asked, strict=True)
        ]
        found = drain(many)
        for generation, prompt, each in zip(made, prompts, asked, strict=True):
            assert generation.error is None
            assert ids(found[generation]) == list(one.generate(prompt, **each).token_ids)
        assert sum(generation.stats.drafted for generation in made)


@pytest.mark.parametrize("name", ["fp32", "w8a8", "int4", "standard-fp32"])
def test_on_onnx_runtime(tiny_bundles: dict[str, Path], name: str) -> None:
    prompts = ["one two three", "a b a b a b a b", "x" * 150, "x" * 150 + "y", "", "10 9 8 7"]
    compare(tiny_bundles[name], prompts, draft_tokens=3)


def test_on_pytorch(tiny_bundles: dict[str, Path], tiny_source: Path) -> None:
    """Rows of a batch are products of other shapes there, which differ in the last bits."""
    prompts = ["one two three", "a b a b a b a b", "x" * 150, "10 9 8 7"]
    compare(
        tiny_bundles["fp32"],
        prompts,
        draft_tokens=3,
        target_engine="pytorch",
        sources=(tiny_source,),
    )


@pytest.mark.weights
def test_on_real_weights(real_bundle: Path) -> None:
    """Int8 rounding amplifies any difference, so equal texts are equal rows."""
    compare(
        real_bundle,
        [
            "Write a haiku about rain.",
            "Count from one to thirty.",
            "Repeat this three times: the lamp stands 36 metres above the water.",
            "What is the capital of France, and what is it known for? " * 12,
            "What is the capital of France, and what is it known for? " * 12 + "Be brief.",
            "Translate to German: good morning, my friends.",
        ],
    )
