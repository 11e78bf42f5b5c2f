"""Comments in streams that are silent: clients skip them, and failures stay readable."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.batching import BatchDecoder
from specplug.serving.answers import SlowReaderError
from specplug.serving.replies import COMMENT, EventStream
from tests_support.serving import MODEL, PATIENCE, Held, Running, serving

BODY = {"prompt": "x", "max_tokens": 12, "temperature": 0, "stream": True}


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2, draft_tokens=0) as decoder:
        yield decoder


def events(server: Running, **fields) -> tuple[int, list[bytes]]:
    status, _, body = server.send("POST", "/v1/completions", BODY | fields)
    return status, body.split(b"\n\n")


def text(pieces: list[bytes]) -> str:
    data = [json.loads(one.removeprefix(b"data: ")) for one in pieces if one.startswith(b"data: {")]
    return "".join(one["choices"][0]["text"] for one in data)


def test_a_stream_that_waits_opens_with_comments(batch) -> None:
    with serving(batch, keep_alive_comment=0.1) as server, Held(batch) as engine:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
        connection.request(
            "POST", "/v1/completions", json.dumps(BODY), {"Content-Type": "application/json"}
        )
        answer = connection.getresponse()  # the engine has done nothing yet
        assert answer.status == 200
        assert [answer.readline() for _ in range(4)] == [b": keep-alive\n", b"\n"] * 2
        engine.go()
        held = answer.read().split(b"\n\n")
        connection.close()
    with serving(batch) as server:
        status, plain = events(server)
    assert status == 200
    assert not any(piece.startswith(b":") for piece in plain)
    assert text(held) == text(plain) != ""
    assert held[-2:] == plain[-2:] == [b"data: [DONE]", b""]


def test_comments_come_between_tokens_too_and_clients_skip_them(batch) -> None:
    with serving(batch, keep_alive_comment=0.05) as server, server.client() as client:
        whole = client.completions.create(model=MODEL, prompt="x", max_tokens=4, temperature=0)
        with Held(batch, 0.4) as engine:
            pieces = events(server, max_tokens=4)[1]
            first = next(i for i, piece in enumerate(pieces) if piece.startswith(b"data"))
            assert b": keep-alive" in pieces[first:]
            assert text(pieces) == whole.choices[0].text
            stream = client.completions.create(
                model=MODEL, prompt="x", max_tokens=4, temperature=0, stream=True
            )
            assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
            engine.go()
        with Held(batch, 0.2) as engine:
            chat = client.completions.with_streaming_response.create(
                model=MODEL, prompt="x", max_tokens=2, stream=True
            )
            with chat as raw:
                assert ": keep-alive" in list(raw.iter_lines())
            engine.go()


def test_what_fails_at_once_has_its_status(batch) -> None:
    with serving(batch, keep_alive_comment=PATIENCE) as server, Held(batch) as engine:
        engine.failure = RuntimeError("no")
        engine.go()
        assert events(server)[0] == 500
        assert events(server, n=0)[0] == 400


@pytest.mark.parametrize("why", ["failure", "timeout"])
def test_what_fails_after_a_comment_is_an_event(batch, why) -> None:
    with serving(batch, keep_alive_comment=0.1, request_timeout=1.0) as server:
        with Held(batch) as engine, ThreadPoolExecutor(1) as pool, server.client() as client:
            stream = client.completions.create(
                model=MODEL, prompt="x", max_tokens=4, stream=True
            )  # returns with the status
            asked = pool.submit(list, stream)
            if why == "failure":
                engine.failure = RuntimeError("no")
                engine.go()
            with pytest.raises(openai.APIError, match=r"log tells why|longer than") as caught:
                asked.result()
            assert caught.value.code == {"failure": "internal_error", "timeout": "timeout"}[why]
        server.wait_until_free()


# --- the stream alone -----------------------------------------------------------------------------


async def play(waits: list[float], fails: bool, comment_after: float) -> list[dict[str, Any]]:
    """What a stream sends whose events take so long each."""
    sent: list[dict[str, Any]] = []

    async def made() -> AsyncGenerator[bytes, None]:
        for number, wait in enumerate(waits):
            await asyncio.sleep(wait)
            yield b"data: %d\n\n" % number
        if fails:
            raise ValueError("no")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        await asyncio.sleep(0)

    stream = EventStream(made(), 1.0, comment_after)
    try:
        await stream({"type": "http"}, lambda: asyncio.sleep(0), send)  # type: ignore[arg-type]
        assert not fails
    except ValueError:
        assert fails
    count = len(sent)
    await asyncio.sleep(2 * comment_after)
    assert len(sent) == count  # nothing follows
    return sent


@given(
    waits=st.lists(st.sampled_from([0.0, 0.001, 0.004]), max_size=5),
    fails=st.booleans(),
)
def test_comments_change_nothing_else(waits, fails) -> None:
    sent = asyncio.run(play(waits, fails, 0.002))
    if sent:
        assert [one["type"] for one in sent].index("http.response.start") == 0
    bodies = sent[1:]
    assert all(one["type"] == "http.response.body" for one in bodies)
    told = [one["body"] for one in bodies if one["body"] != COMMENT]
    numbers = [b"data: %d\n\n" % number for number in range(len(waits))]
    assert told == numbers + ([] if fails else [b""])
    assert [one["more_body"] for one in bodies if not one["more_body"]] == [False] * (not fails)


def test_a_reader_that_takes_no_comment_is_given_up_with_the_next_event() -> None:
    async def made() -> AsyncGenerator[bytes, None]:
        await asyncio.sleep(0.2)
        yield b"data: 1\n\n"

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(PATIENCE)

    async def receive() -> dict[str, Any]:
        return {}

    began = time.monotonic()
    with pytest.raises(SlowReaderError):
        asyncio.run(EventStream(made(), 0.1, 0.02)({"type": "http"}, receive, send))
    assert time.monotonic() - began < PATIENCE / 2
