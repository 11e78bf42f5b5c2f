"""Places: who is let in, who is refused, and how long the refused are told to stay away."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.batching import BatchDecoder
from specplug.serving import limits
from specplug.serving.errors import ApiError
from specplug.serving.keys import KeyRing, hash_key
from specplug.serving.limits import Admission
from tests_support.serving import Held, serving, until

KEYS = KeyRing({name: hash_key(name) for name in ("anna", "ben", "carl")})


@given(
    batch=st.integers(1, 4),
    waiting=st.integers(0, 8),
    share=st.one_of(st.none(), st.integers(1, 12)),
    keyed=st.booleans(),
    steps=st.lists(
        st.tuples(st.sampled_from("abcd"), st.integers(1, 16), st.booleans()), max_size=60
    ),
)
def test_who_is_let_in(batch, waiting, share, keyed, steps) -> None:
    admission = Admission(batch, waiting, share, keyed=keyed)
    places = batch + waiting
    bound = share or (-(-places // 2) if keyed else None)
    assert admission.most == min(places, bound or places) >= 1
    inside: list[tuple[str, int, AbstractContextManager[None]]] = []
    for owner, answers, leaves in steps:
        if leaves and inside:
            inside.pop(0)[2].__exit__(None, None, None)
            continue
        answers = min(answers, admission.most)
        own = sum(count for name, count, _ in inside if name == owner)
        taken = sum(count for _, count, _ in inside)
        assert admission.taken == taken
        full = taken >= places and own > 0  # nobody is refused for what others have alone
        over = bound is not None and own + answers > bound
        entry = admission.enter(owner, answers)
        try:
            entry.__enter__()
        except ApiError as error:
            refused = error
        else:
            inside.append((owner, answers, entry))
            assert not full
            assert not over
            continue
        assert full or over
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
    for _, _, entry in inside:
        entry.__exit__(None, None, None)
    assert admission.taken == 0
    assert not admission._owners


def test_retry_after_is_what_the_key_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """By how long its own requests take, and how many of them are under way; not by others'."""
    clock = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: clock[0])
    admission = Admission(2, 18, None, keyed=True)
    for owner, seconds in (("slow", 40.0), ("quick", 4.0)):
        with admission.enter(owner, 1):
            clock[0] += seconds

    def told(owner: str, under_way: int, more: int) -> int:
        with admission.enter(owner, under_way), pytest.raises(ApiError) as caught:
            admission.enter(owner, more).__enter__()
        admission._seconds[owner] = {"slow": 40.0, "quick": 4.0}[owner]
        return int(caught.value.headers["Retry-After"])

    assert told("slow", 10, 1) == 4  # one of ten ends every four seconds
    assert told("slow", 10, 5) == 20
    assert told("quick", 10, 5) == 2
    assert told("slow", 8, 3) == 5


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]):
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2, draft_tokens=2) as decoder:
        yield decoder


def test_a_key_that_floods_gets_nobody_else_refused(batch) -> None:
    """Nor do two together: a third is let in, and its answer is next."""
    body = {"prompt": "x", "max_tokens": 3, "temperature": 0}

    def ask(server, name: str, n: int) -> int:
        headers = {"Authorization": f"Bearer {name}"}
        return server.send("POST", "/v1/completions", body | {"n": n}, headers=headers)[0]

    with serving(batch, keys=KEYS, max_waiting=6) as server, Held(batch) as engine:
        with ThreadPoolExecutor(8) as pool:
            taken = server.service.admission
            asked = [pool.submit(ask, server, "anna", 4)]
            until(lambda: taken.taken == 4)
            assert ask(server, "anna", 1) == 429
            asked.append(pool.submit(ask, server, "ben", 4))
            until(lambda: taken.taken == 8)
            asked.append(pool.submit(ask, server, "carl", 4))
            until(lambda: taken.taken == 12)
            assert ask(server, "carl", 1) == 429
            assert ask(server, "anna", 5) == 400  # it never could be
            engine.go()
            assert [one.result() for one in asked] == [200] * 3
        server.wait_until_free()
