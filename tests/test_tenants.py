"""What is learnt from texts: each tenant's own, bounded, and forgotten in the order of its use."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Proposal, SamplingParams
from specplug.batching import BatchDecoder
from specplug.bundle import Block
from specplug.controller import CallCosts, MeasuredLength
from specplug.drafters import BlockSource, NgramDrafter, RecycleSource, TreeDrafter
from specplug.drafters.chances import Chances
from specplug.engines.fake import FakeEngine
from specplug.serving.keys import KeyRing, hash_key
from specplug.tenants import Recent, Tables, Tenants
from tests_support.drafting import outcome, request
from tests_support.native import Native
from tests_support.serving import MODEL, Running, serving
from tests_support.tenants import (
    COMMON,
    DRAFTERS,
    VOCAB,
    Asked,
    batched,
    beside,
    fixed_times,
    one_by_one,
    said,
)


def test_a_token_that_followed_for_one_tenant_is_not_guessed_for_another() -> None:
    source = RecycleSource()
    source.reset(request(8, tenant="a"))
    source.commit(outcome(Proposal((4,)), 1, [4, 6], after=2, best=[4, 6]))
    fork = source.fork()
    for one in (source, fork):
        assert [guess.token for guess in one.guesses(2)] == [4]
        one.reset(request(8, tenant="b"))
        assert one.guesses(2) == []
        assert one.guesses(4) == []
        one.reset(request(8, tenant="a"))  # and within a tenant it stays
        assert [guess.token for guess in one.guesses(4)] == [6]


def test_chances_are_learnt_by_tenant() -> None:
    chances = Chances(lambda kind: 0.5)
    fork = chances.fork()
    chances.begin("a")
    for _ in range(50):
        chances.learn("kind", came_true=True)
    fork.begin("b")
    assert fork["kind"] == 0.5
    fork.begin("a")
    assert fork["kind"] > 0.8


def test_a_drafter_tells_its_chances_the_tenant() -> None:
    drafter = TreeDrafter("recycle", [RecycleSource()])
    drafter.reset(request(8, tenant="a"))
    drafter._chances[0].learn("kind", came_true=True)
    drafter.reset(request(8, tenant="b"))
    assert not drafter._chances[0]._long


def test_how_many_guesses_of_a_block_are_right_is_learnt_by_tenant() -> None:
    source = BlockSource(
        FakeEngine(said(1), vocab_size=VOCAB, max_batch=2), Block(size=4, mask_token=1)
    )
    fork = source.fork()
    source.reset(request(VOCAB, tenant="a"))
    source._run.mean = 3.0
    means = {}
    for tenant in "ba":
        fork.reset(request(VOCAB, tenant=tenant))
        means[tenant] = fork._run.mean
    assert means == {"a": 3.0, "b": 1.0}


def test_how_much_a_batch_drafts_is_learnt_by_tenant_and_what_calls_cost_by_all() -> None:
    costs = {1: 1.0, 8: 1.3}
    with BatchDecoder(
        FakeEngine(said(1), vocab_size=VOCAB, max_batch=2),
        drafter=NgramDrafter(),
        batch_costs={1: costs, 2: costs},
    ) as decoder:
        for rows in (1, 2):
            own, other = decoder._length(rows, "a"), decoder._length(rows, "b")
            assert own is decoder._length(rows, "a")
            assert own is not other
            assert isinstance(own, MeasuredLength)
            assert isinstance(other, MeasuredLength)
            assert own.costs is other.costs


# --- nobody learns from another ---------------------------------------------------------------

tokens = st.lists(st.integers(0, COMMON - 1), min_size=1, max_size=8).map(tuple)
asked = st.builds(
    Asked,
    tenant=st.sampled_from("aab"),
    prompt=tokens,
    options=st.fixed_dictionaries(
        {"max_tokens": st.integers(4, 30)},
        optional={
            "prediction": st.lists(st.integers(0, COMMON - 1), max_size=12),
            "sampling": st.builds(SamplingParams, temperature=st.just(0.5), seed=st.integers(0, 3)),
        },
    ),
)
lengths = st.sampled_from([3, "auto", "auto"])


def of_b(all_asked: list[Asked], fates: list[Any]) -> list[Any]:
    return [fate for one, fate in zip(all_asked, fates, strict=True) if one.tenant == "b"]


@pytest.mark.parametrize("drafter", DRAFTERS)
@settings(deadline=None, max_examples=4)
@given(all_asked=st.lists(asked, min_size=2, max_size=6), length=lengths, trees=st.booleans())
def test_drafts_are_the_same_whatever_others_asked_before(
    drafter: str, all_asked: list[Asked], length: Any, trees: bool
) -> None:
    """Tokens, their origins, and how many were drafted and accepted in each round."""
    all_asked = [*all_asked, Asked("b", (1, 2), {"max_tokens": 20})]
    own = [one for one in all_asked if one.tenant == "b"]
    wanted = one_by_one(drafter, own, length, trees=trees)
    assert of_b(all_asked, one_by_one(drafter, all_asked, length, trees=trees)) == wanted


@pytest.mark.parametrize("drafter", DRAFTERS)
@settings(deadline=None, max_examples=2)
@given(all_asked=st.lists(asked, min_size=2, max_size=5), length=lengths)
def test_drafts_of_a_batch_are_the_same_whatever_others_asked_before(
    drafter: str, all_asked: list[Asked], length: Any
) -> None:
    all_asked = [*all_asked, Asked("b", (1, 2), {"max_tokens": 20})]
    own = [[one] for one in all_asked if one.tenant == "b"]
    wanted = batched(drafter, own, length)
    assert of_b(all_asked, batched(drafter, [[one] for one in all_asked], length)) == wanted


@pytest.mark.parametrize("drafter", DRAFTERS)
@settings(deadline=None, max_examples=2)
@given(own=st.lists(asked, min_size=1, max_size=3), one=tokens, other=tokens, length=lengths)
def test_drafts_are_the_same_whatever_another_asks_at_the_time(
    drafter: str, own: list[Asked], one: Any, other: Any, length: Any
) -> None:
    own = [replace(each, tenant="b") for each in own]
    first = beside(drafter, Asked("a", one, {}), own, length)
    assert beside(drafter, Asked("a", other, {}), own, length) == first


@pytest.mark.parametrize("drafter", ["suffix", "recycle", "auto", "auto-head-block"])
def test_within_a_tenant_it_is_learnt_and_the_text_stays(drafter: str) -> None:
    """And so the tests above would fail, were the tenants one."""
    told = {"max_tokens": 30}
    [plain] = one_by_one("none", [Asked("a", (1, 2), told)], 3, trees=False)
    twice = [Asked("a", (1, 2), told), Asked("a", (1, 2), told)]
    for length in (3, "auto"):
        first, second = one_by_one(drafter, twice, length, trees=False)
        assert sum(second[2]) > sum(first[2])
        for found in (first, second):
            assert [token for token, _ in found[0]] == [token for token, _ in plain[0]]
        for other in ("b", ""):
            apart = one_by_one(
                drafter, [twice[0], replace(twice[1], tenant=other)], length, trees=False
            )
            assert apart == [first, first]


# --- over HTTP --------------------------------------------------------------------------------

KEYS = {"anna": "key of anna", "ben": "key of ben"}


def origins(server: Running, name: str) -> list[tuple[int, str]]:
    """The tokens of an answer and where they came from, as the holder of a key sees them."""
    pieces = server.client(KEYS[name]).completions.create(
        model=MODEL,
        prompt="the quick brown fox",
        max_tokens=24,
        temperature=0,
        stream=True,
        extra_body={"stream_options": {"include_token_origins": True}},
    )
    return [
        (token["id"], token["origin"])
        for chunk in pieces
        for choice in chunk.choices
        for token in choice.tokens
    ]


@pytest.mark.parametrize("drafter", ["recycle", "auto"])
@pytest.mark.parametrize("draft_tokens", [4, "auto"])
def test_no_key_sees_by_its_drafts_what_another_asked(
    drafter: str, draft_tokens: Any, tiny_bundles: dict[str, Path]
) -> None:
    """Whoever asks what another one asked would get the other's answer drafted."""
    ring = KeyRing({name: hash_key(key) for name, key in KEYS.items()})

    def seen(*names: str) -> list[list[tuple[int, str]]]:
        costs = {1: 1.0, 32: 1.1}
        with (
            fixed_times(),
            BatchDecoder.from_bundle(
                tiny_bundles["fp32"], max_batch=1, drafter=drafter, draft_tokens=draft_tokens
            ) as decoder,
        ):
            decoder._costs, decoder._batch_costs = CallCosts(costs), {1: costs}
            with serving(decoder, keys=ring) as server:
                return [origins(server, name) for name in names]

    def drafted(found: list[tuple[int, str]]) -> int:
        return sum(origin == "draft" for _, origin in found)

    [alone] = seen("ben")
    annas, bens, again = seen("anna", "ben", "anna")
    assert annas == bens == alone
    assert drafted(again) > drafted(annas)  # it would have been seen
    assert [token for token, _ in again] == [token for token, _ in annas]


# --- in C++ -----------------------------------------------------------------------------------


def test_in_cpp_drafts_are_the_same_whatever_others_asked(
    native_build: None, tiny_bundle: Path
) -> None:
    """With fixed lengths: the tool cannot fix what calls cost."""

    def fates(drafter: str, *tenants: str) -> list[Any]:
        with Native(tiny_bundle) as native:
            asked = {"prompt": [7, 8, 9, 7, 8], "max_tokens": 30, "draft_tokens": 4}
            asked |= {"drafter": drafter, "decoder": "one"}
            answers = [native.ask("generate", tenant=tenant, **asked) for tenant in tenants]
            return [(each["tokens"], each["stats"]["accepted_per_round"]) for each in answers]

    for drafter in ("recycle", "suffix", "auto"):
        [alone] = fates(drafter, "b")
        first, own, again = fates(drafter, "a", "b", "a")
        assert first == own == alone
        assert again[0] == alone[0]
        assert sum(again[1]) > sum(alone[1])  # it is learnt


# --- bounds -----------------------------------------------------------------------------------

names = st.lists(st.sampled_from("abcdefgh"), max_size=60)


@settings(deadline=None)
@given(asked=names, most=st.integers(1, 5))
def test_who_asked_the_longest_ago_is_forgotten(asked: list[str], most: int) -> None:
    made: list[int] = []
    tenants = Tenants(lambda: made.append(1) or len(made), most)  # type: ignore[func-returns-value]
    expected: OrderedDict[str, int] = OrderedDict()
    for name in asked:
        state = tenants.of(name)
        if name in expected:
            assert state == expected[name]
        expected[name] = state
        expected.move_to_end(name)
        while len(expected) > most:
            expected.popitem(last=False)
        assert len(tenants) == len(expected)
        assert all(one in tenants for one in expected)
    assert len({*expected.values()}) == len(expected)


@settings(deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 30)), max_size=200),
    most=st.integers(1, 6),
    more=st.integers(0, 20),
)
def test_tables_have_so_many_entries_and_equal_shares(
    steps: list[tuple[str, int]], most: int, more: int
) -> None:
    tables: Tables[int, int] = Tables(most + more, most)
    known: set[str] = set()
    for name, key in steps:
        table = tables.of(name)
        table[key] = key
        assert [*table][-1] == key  # the latest stays
        known.add(name)
        kept = [tables.of(one) for one in sorted(known) if one in tables]
        assert sum(map(len, kept)) <= most + more
        assert all(one.most == kept[0].most >= 1 for one in kept)
        tables.of(name)


def test_the_entry_set_the_longest_ago_goes_first() -> None:
    recent: Recent[str, int] = Recent(2)
    for key in "abacb":
        recent[key] = 0
    assert [*recent] == ["c", "b"]


def test_ten_thousand_tenants_take_no_more_than_a_few() -> None:
    source, chances = RecycleSource(most_tokens=1024), Chances(lambda kind: 0.5)
    anybody = request(8)
    met = outcome(Proposal((1, 2, 3)), 3, [1, 2, 3, 4], after=0, best=[1, 2, 3, 4])
    for tenant in range(10_000):
        source.reset(replace(anybody, tenant=str(tenant)))
        chances.begin(str(tenant))
        for token in range(6):
            chances.learn(token, came_true=True)
        source.commit(met)
    tables = source._tables
    assert len(tables) == tables.most == 256
    assert sum(len(table) for table in tables._states.values()) <= 1024
    assert len(chances._tenants) == 256
    assert "9999" in tables
    assert "9743" not in tables


def test_what_one_tenant_writes_does_not_shrink_anothers_share() -> None:
    source = RecycleSource(most_tokens=512)
    source.reset(request(600, tenant="b"))
    source.commit(outcome(Proposal(), 0, [5], after=7, best=[5], vocab_size=600))
    source.reset(request(600, tenant="a"))
    for token in range(599):
        said = outcome(Proposal(), 0, [1], after=token, best=[token + 1], vocab_size=600)
        source.commit(said)
    assert len(source._table) == 256
    source.reset(request(600, tenant="b"))
    assert [guess.token for guess in source.guesses(7)] == [5]
    assert np.isclose(source.prior(source.guesses(7)[0].kind), 0.3)
