"""What is learnt from texts: each tenant's own, bounded, and forgotten in the order of its use."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Proposal
from specplug.drafters import RecycleSource, TreeDrafter
from specplug.drafters.chances import Chances
from specplug.tenants import Recent, Tables, Tenants
from tests_support.drafting import outcome, request


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
    for tenant in range(10_000):
        source.reset(request(8, tenant=str(tenant)))
        chances.begin(str(tenant))
        for token in range(6):
            chances.learn(token, came_true=True)
        source.commit(outcome(Proposal((1, 2, 3)), 3, [1, 2, 3, 4], after=0, best=[1, 2, 3, 4]))
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
