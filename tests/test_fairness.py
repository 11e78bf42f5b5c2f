"""Tenants share rows and the reading of prompts: nobody is passed over for long, and texts stay.

Whoever asks, and however much: the bounds that docs/BATCHING.md states are checked at each step.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.engines.fake import FakeEngine
from specplug.generation import Generation
from specplug.prefixes import PIECE
from tests_support.batching import drain, ids
from tests_support.languages import language

VOCAB = 6
row = partial(language, vocab_size=VOCAB)(1)


class Watched(BatchDecoder):
    """Notes who begins, who could have, and whose prompt each piece is of."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.order: list[Generation] = []
        """In which they got rows."""
        self.passed: Counter[tuple[str, str]] = Counter()
        """How often the second tenant got a row while the first one had none and waited."""
        self.pieces: list[str] = []
        """Tenants, a piece each."""
        self.apart: Counter[str] = Counter()
        """Pieces that others got since a tenant with a prompt in a row last got one."""

    def _begin(self, generation: Generation, taken: Any) -> None:
        rows = Counter(one.request.tenant for one in self._began() if one is not generation)
        winner = generation.request.tenant
        for name in {one.request.tenant for one in self._line.waiting} - {winner}:
            assert rows[winner] <= rows[name] or name in {
                one.request.tenant for one in self._line.reading
            }
            if not rows[name]:
                self.passed[name, winner] += 1
                assert self.passed[name, winner] <= 1
        for pair in [*self.passed]:
            if pair[0] == winner:
                del self.passed[pair]
        self.order.append(generation)
        super()._begin(generation, taken)

    def _read(self) -> Any:
        reading = {one.request.tenant for one in self._line.reading}
        turn = self._line.next_to_read

        def watched() -> Generation | None:
            generation = turn()
            if generation is not None:
                self.pieces.append(generation.request.tenant)
            return generation

        self._line.next_to_read = watched  # type: ignore[method-assign]
        yield from super()._read()
        self._line.next_to_read = turn  # type: ignore[method-assign]
        for name in [*self.apart]:
            if name not in reading:
                del self.apart[name]
        for name in reading:
            self.apart[name] = 0 if name == self.pieces[-1] else self.apart[name] + 1
            assert self.apart[name] < len(TENANTS)


TENANTS = ("", "a", "b", "c")

requests = st.fixed_dictionaries(
    {
        "tenant": st.sampled_from(TENANTS),
        "tokens": st.one_of(st.integers(1, 20), st.integers(1, 12 * PIECE)),
        "answer": st.integers(1, 12),
        "first": st.integers(0, 1),  # token; prompts that begin alike share prefixes
        "comes": st.integers(0, 40),
        "goes": st.one_of(st.none(), st.integers(0, 80)),
    }
)


def prompt_of(request: dict[str, Any]) -> list[int]:
    return [request["first"]] * (request["tokens"] - 1) + [request["tokens"] % VOCAB]


@given(
    asked=st.lists(requests, min_size=2, max_size=14),
    rows=st.integers(1, 5),
    cache=st.sampled_from([0, 3 * PIECE * 8, 1 << 20]),
)
@settings(max_examples=120, deadline=None)
def test_nobody_is_passed_over_and_texts_stay(asked, rows, cache) -> None:
    decoder = Watched(
        FakeEngine(row, vocab_size=VOCAB, max_batch=rows),
        draft_tokens=2,
        prefix_cache_bytes=cache,
    )
    alone = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB))
    made: dict[Generation, list[Any]] = {}
    submitted: dict[int, Generation] = {}
    number = 0
    while number <= 40 or not decoder.idle:
        for index, request in enumerate(asked):
            if request["comes"] == number:
                submitted[index] = decoder.submit(
                    prompt_of(request), max_tokens=request["answer"], tenant=request["tenant"]
                )
            if request["goes"] == number and index in submitted:
                submitted[index].cancel()
        for generation, tokens in decoder.step():
            made.setdefault(generation, []).extend(tokens)
        places = [one.slot.row for one in decoder._began()]
        assert places[: decoder.running] == [*range(decoder.running)]
        assert len({*places}) == len(places) <= rows
        number += 1
    assert (decoder.waiting, len(decoder._free), decoder._states) == (0, rows, {})
    assert (decoder._line._tenants, decoder._line._turns) == ({}, {})
    for index, generation in submitted.items():
        assert generation.error is None
        expected = alone.generate(prompt_of(asked[index]), max_tokens=asked[index]["answer"])
        found = ids(made[generation])
        assert found == list(expected.token_ids)[: len(found)]
        assert generation.finish_reason in ("cancelled", expected.finish_reason)
        if generation.finish_reason != "cancelled":
            assert len(found) == len(expected.token_ids)


def test_a_short_prompt_of_another_tenant_overtakes_a_long_one() -> None:
    decoder = BatchDecoder(FakeEngine(row, vocab_size=VOCAB, max_batch=4))
    long = decoder.submit([1] * (50 * PIECE), max_tokens=4, tenant="a")
    for _ in range(3):
        decoder.step()
    short = decoder.submit([2] * PIECE, max_tokens=4, tenant="b")
    for _ in range(2):
        decoder.step()
    assert short.stats.new_tokens > 0 == long.stats.new_tokens
    drain(decoder)
    assert (long.finish_reason, short.finish_reason) == ("length", "length")


def test_short_prompts_of_one_tenant_overtake_a_long_one_and_do_not_starve_it() -> None:
    decoder = BatchDecoder(FakeEngine(row, vocab_size=VOCAB, max_batch=4))
    long = decoder.submit([1] * (20 * PIECE), max_tokens=4)
    done = []
    while not long.stats.new_tokens:
        done.append(decoder.submit([2], max_tokens=2))
        decoder.step()
        assert len(done) <= 2 * 20 + 1  # at least every second piece is the long one's
    assert done[0].finish_reason == "length"
    drain(decoder)


def test_equal_prompts_are_read_one_after_another_and_only_once() -> None:
    """So that the first of ``n`` answers is soon there, and the others find its prefix."""
    target = FakeEngine(row, vocab_size=VOCAB, max_batch=4)
    decoder = BatchDecoder(target)
    prompt = [n % VOCAB for n in range(6 * PIECE + 3)]
    made = [decoder.submit(prompt, max_tokens=30, sample=n) for n in range(4)]
    drain(decoder)
    assert [one.cached_tokens for one in made] == [0, *[6 * PIECE] * 3]


def test_the_next_free_row_goes_to_the_tenant_without_one() -> None:
    """However many wait before it, and although the others' rows are not taken away."""
    decoder = Watched(FakeEngine(row, vocab_size=VOCAB, max_batch=3), draft_tokens=0)
    for number in range(10):
        decoder.submit([number % VOCAB], max_tokens=20 + 10 * number, tenant="a")
    while decoder.running < 3:
        decoder.step()
    others = [decoder.submit([2], max_tokens=3, tenant=name) for name in "bcb"]
    drain(decoder)
    assert decoder.order[3:6] == others


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_one_who_floods_does_not_make_others_wait_for_its_flood(rows: int) -> None:
    """Another tenant's request begins as soon as any one answer ends."""
    decoder = Watched(FakeEngine(row, vocab_size=VOCAB, max_batch=rows), draft_tokens=0)
    for _ in range(100):
        decoder.submit([1] * 10, max_tokens=10, tenant="a")
    while decoder.running < rows:
        decoder.step()
    other = decoder.submit([2], max_tokens=3, tenant="b")
    steps = 0
    while not other.finish_reason:
        decoder.step()
        steps += 1
    assert steps <= 10 + 3 + 2
    for generation in decoder._line.waiting:
        generation.cancel()
    drain(decoder)
