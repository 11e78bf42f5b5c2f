"""An ingress sends requests on in turn by key, whoever fills it."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.serving.cluster.line import AT_RAY, RequestLine
from specplug.serving.cluster.requests import Forwarded
from specplug.serving.errors import ApiError
from specplug.serving.keys import KeyRing, hash_key

KEYS = KeyRing({name: hash_key(name) for name in ("anna", "ben", "carl")})


def request(name: str) -> Forwarded:
    header = (b"authorization", f"Bearer {name}".encode())
    return Forwarded(method="POST", path="/", headers=(header,))


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@given(
    names=st.lists(st.sampled_from(["anna", "ben", "carl", "nobody"]), max_size=60),
    cancelled=st.sets(st.integers(0, 59), max_size=20),
)
@settings(max_examples=60, deadline=None)
def test_keys_take_turns(names: list[str], cancelled: set[int]) -> None:
    """While a key waits, no other key gets two turns; and no turn is lost to who went away."""

    async def scenario() -> None:
        line = RequestLine(KEYS, 200)
        began: list[int] = []
        gone = asyncio.Event()
        release = [asyncio.Event() for _ in range(AT_RAY)]

        async def hold(event: asyncio.Event) -> None:
            async with line.turn(request("anna")):
                await event.wait()

        async def ask(number: int) -> None:
            async with line.turn(request(names[number])):
                began.append(number)
                await gone.wait() if number in cancelled else await asyncio.sleep(0)

        holding = [asyncio.create_task(hold(event)) for event in release]
        await settled()
        asking = [asyncio.create_task(ask(number)) for number in range(len(names))]
        await settled()
        assert began == []
        for number in cancelled:
            if number < len(names):
                asking[number].cancel()
        release[0].set()
        for _ in range(10 * len(names) + 10):
            await asyncio.sleep(0)
        expected = [number for number in range(len(names)) if number not in cancelled]
        assert sorted(began) == expected
        for at, number in enumerate(began):
            between: dict[str, int] = {}
            for other in began[:at]:
                between[names[other]] = between.get(names[other], 0) + 1
            mine = between.get(names[number], 0)
            assert all(count <= mine + 1 for count in between.values())
            assert [names[n] for n in began[:at]].count(names[number]) == sum(
                names[n] == names[number] for n in expected if n < number
            )
        for event in release:
            event.set()
        await asyncio.gather(*holding)
        await asyncio.gather(*asking, return_exceptions=True)
        assert (line._free, line._waiting, line._admission.taken) == (AT_RAY, {}, 0)

    asyncio.run(scenario())


def test_a_key_that_fills_an_ingress_does_not_get_others_refused() -> None:
    async def scenario() -> None:
        line = RequestLine(KEYS, 20)
        over = asyncio.Event()
        refused: dict[str, int] = {}

        async def ask(name: str) -> None:
            try:
                async with line.turn(request(name)):
                    await over.wait()
            except ApiError as error:
                refused[name] = refused.get(name, 0) + (error.status == 429)

        asking = [asyncio.create_task(ask(name)) for name in ["anna"] * 30 + ["ben"] * 30]
        asking.append(asyncio.create_task(ask("carl")))
        await settled()
        assert refused == {"anna": 20, "ben": 20}
        over.set()
        await asyncio.gather(*asking)
        assert line._admission.taken == 0

    asyncio.run(scenario())


def test_requests_that_go_away_as_their_turn_comes_give_it_on() -> None:
    async def scenario() -> None:
        line = RequestLine(KEYS, 20)

        async def ask(event: asyncio.Event) -> None:
            async with line.turn(request("anna")):
                await event.wait()

        events = [asyncio.Event() for _ in range(AT_RAY + 1)]
        asking = [asyncio.create_task(ask(event)) for event in events[:AT_RAY]]
        await settled()
        waiting = asyncio.create_task(ask(events[-1]))
        await settled()
        events[0].set()
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert line._free == 1
        for event in events:
            event.set()
        await asyncio.gather(*asking)

    asyncio.run(scenario())
