"""Replies of any size: made in pieces and off the event loop, with a bound on what one holds."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.context import Token
from specplug.logprobs import TokenLogprobs
from specplug.serving import options, replying
from specplug.serving.answers import SlowReaderError, Update
from specplug.serving.logs import Record
from specplug.serving.replies import PiecedReply, json_pieces, to_json
from specplug.serving.replying import Reply
from specplug.serving.service import Asked
from specplug.serving.settings import ServerSettings
from specplug.serving.shapes import ChatShape, CompletionShape
from specplug.serving.worker import Channel
from specplug.stats import SpeculationStats
from tests_support.serving import PATIENCE, serving

# --- JSON -----------------------------------------------------------------------------------------

leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.builds(lambda one, count: [one] * count, inner, st.sampled_from([63, 64, 65, 130]))
    ),
    max_leaves=8,
)


@given(values)
def test_pieces_make_the_same_json(value) -> None:
    assert b"".join(json_pieces(value)) == to_json(value)


def test_no_piece_is_large() -> None:
    entry = {"token": "x", "logprob": -1.5, "bytes": [120]}
    content = [{**entry, "top_logprobs": [entry] * 20}] * 2000
    choices = [{"logprobs": {"content": content}, "message": {"content": "x"}}] * 16
    pieces = list(json_pieces({"choices": choices, "rounds": list(range(100_000))}))
    assert sum(map(len, pieces)) > 30e6
    assert max(map(len, pieces)) < 100_000


# --- the loop -------------------------------------------------------------------------------------

LIKELY = TokenLogprobs(-1.0, tuple((number, -float(number)) for number in range(20)), 1)


class Made:
    """A service whose answers are there at once: so many, so long, with log-probabilities."""

    def __init__(self, answers: int, tokens: int) -> None:
        self.settings = ServerSettings(request_timeout=PATIENCE)
        self._making = ThreadPoolExecutor(1)
        made = [Token(7, "x", "target", LIKELY, utf8=b"x")] * tokens
        generation = SimpleNamespace(
            stats=SpeculationStats(prompt_tokens=1, new_tokens=tokens),
            request=SimpleNamespace(prediction=np.zeros(0), prompt_tokens=1),
            prompt=[1], cached_tokens=0, predicted_text="",
        )  # fmt: skip
        generation.stats.drafted_per_round += [3] * tokens
        generation.stats.accepted_per_round += [1] * tokens
        self.channels = [SimpleNamespace(generation=generation)] * answers
        self._updates = [Update(index, made, "length") for index in range(answers)]

    @contextlib.asynccontextmanager
    async def answering(self, asked: Asked, gone: object = None) -> AsyncIterator[Made]:
        yield self

    async def updates(self) -> AsyncIterator[list[Update]]:
        yield self._updates

    async def off_loop(self, make: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._making, make)


class Names:
    """A tokenizer, as far as log-probabilities need one."""

    detokenizer = SimpleNamespace(
        is_special=lambda token: False, spell=lambda token: b"t%d" % token
    )


async def answered(made: Made, shape: Any, **fields: Any) -> tuple[bytes, float, int]:
    """What a reply sends, the loop's longest pause meanwhile, and its largest message, bytes."""
    fields = {"stream": False, "stream_options": None, "prompt_logprobs": None} | fields
    request = SimpleNamespace(n=len(made.channels), **fields)
    deadline = asyncio.get_running_loop().time() + PATIENCE
    asked = Asked(request, ["x"], owner="", chat=isinstance(shape, ChatShape), deadline=deadline)
    record = Record(id="1", method="POST", path="/")
    http = SimpleNamespace(state=SimpleNamespace(record=record), receive=asyncio.Event().wait)
    pauses, largest, sent = [0.0], [0], []

    async def watch() -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            pauses.append(now - last)
            last = now

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))
        largest.append(len(sent[-1]))

    watching = asyncio.create_task(watch())
    await asyncio.sleep(0)
    response = await Reply(made, asked, shape, http).response()
    await response({"type": "http"}, None, send)
    await asyncio.sleep(0)
    watching.cancel()
    return b"".join(sent), max(pauses), max(largest)


def shapes(kind: str) -> Any:
    if kind == "chat":
        return ChatShape(Names(), logprobs=True)
    return CompletionShape(Names(), logprobs=True)


@pytest.fixture
def frozen() -> Iterator[None]:
    """No collection goes through what the tests have loaded, as in ``specplug serve``."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("frozen")
@pytest.mark.parametrize("kind", ["chat", "completion"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_a_large_reply_does_not_hold_the_loop(kind, stream, monkeypatch) -> None:
    """The pause is compared with that of making the reply on the loop, in the same run."""
    made = Made(answers=8, tokens=600)  # 100,000 log-probabilities, of which twice so many may be
    fields = {"stream": stream}
    if stream:
        fields["stream_options"] = SimpleNamespace(include_usage=True)
    body, pause, largest = asyncio.run(answered(made, shapes(kind), **fields))
    assert largest < 500_000
    monkeypatch.setattr(replying, "_FEW", 1 << 30)
    monkeypatch.setattr(replying, "_PIECE", 1 << 30)
    at_once, whole_pause, _ = asyncio.run(answered(made, shapes(kind), **fields))
    assert len(body) > 1e6
    assert pause < whole_pause / 2, (pause, whole_pause)
    if stream:
        texts = [texts_of(kind, one) for one in (body, at_once)]
        assert texts[0] == texts[1] == dict.fromkeys(range(8), ("x" * 600, 600))
    else:
        told = [json.loads(one) for one in (body, at_once)]
        for one in told:
            del one["id"], one["created"]
        assert told[0] == told[1]


def texts_of(kind: str, body: bytes) -> dict[int, tuple[str, int]]:
    """Of each of a stream's choices the text and how many tokens had log-probabilities; the reason
    comes last.
    """
    found: dict[int, tuple[str, int]] = {}
    ended = set()
    for piece in body.split(b"\n\n"):
        if not piece.startswith(b"data: {"):
            continue
        for choice in json.loads(piece.removeprefix(b"data: "))["choices"]:
            index = choice["index"]
            assert index not in ended
            text, count = found.get(index, ("", 0))
            likely = choice["logprobs"] or {}
            text += choice["delta"].get("content", "") if kind == "chat" else choice["text"]
            count += len(likely.get("content" if kind == "chat" else "tokens", ()))
            found[index] = (text, count)
            if choice["finish_reason"]:
                ended.add(index)
    assert ended == set(found)
    return found


def test_a_reader_of_a_large_reply_has_its_time() -> None:
    async def send(message: dict[str, Any]) -> None:
        sent.append(message)
        if len(sent) == 4:
            await asyncio.sleep(PATIENCE)

    sent: list[dict[str, Any]] = []
    reply = PiecedReply([b"x" * 100_000] * 10, 0.05)
    with pytest.raises(SlowReaderError):
        asyncio.run(reply({"type": "http"}, None, send))
    assert [len(one["body"]) for one in sent[1:]] == [1 << 16] * 3
    assert all(one["more_body"] for one in sent[1:])


# --- the bound ------------------------------------------------------------------------------------


def test_a_reply_has_room_for_so_many_log_probabilities(batch, monkeypatch) -> None:
    monkeypatch.setattr(options, "MOST_LOGPROBS", 200)
    body = {"prompt": "x" * 9, "temperature": 0, "logit_bias": {"256": -100}}
    prompt = 9
    with serving(batch) as server:

        def ask(**fields: Any) -> tuple[int, Any]:
            status, _, answer = server.send("POST", "/v1/completions", body | fields)
            return status, json.loads(answer) if not fields.get("stream") else None

        for fields, most in (
            ({"logprobs": 4}, 40),
            ({"logprobs": 4, "n": 2}, 20),
            ({"logprobs": 4, "prompt": ["x" * 9] * 2}, 20),
            ({"logprobs": 4, "echo": True}, 40 - prompt),
            ({"logprobs": 4, "prompt_logprobs": 1}, (200 - 2 * prompt) // 5),
        ):
            assert ask(**fields, max_tokens=most)[0] == 200, fields
            status, answer = ask(**fields, max_tokens=most + 1)
            assert (status, answer["error"]["param"]) == (400, "max_tokens"), fields
            assert "stream them" in answer["error"]["message"]
            status, answer = ask(**fields, n_predict=-1)
            assert status == 200, answer
            assert answer["usage"]["completion_tokens"] == most * len(answer["choices"])
        assert ask(logprobs=4, max_tokens=60, stream=True)[0] == 200
        assert ask(max_tokens=300)[0] == 200
        for name, value in (("prompt_logprobs", 20), ("echo", True)):
            status, answer = ask(prompt="x" * 50, logprobs=4, **{name: value}, max_tokens=1)
            assert (status, answer["error"]["param"]) == (400, name)


def test_a_long_echo_is_no_slow_reader(batch) -> None:
    """It comes at once, and is more than may wait for a reader that falls behind."""
    body = {"prompt": "x" * 200, "echo": True, "stream": True, "max_tokens": 4, "logprobs": 3}
    with serving(batch, stream_buffer=50) as server:
        status, _, answer = server.send("POST", "/v1/completions", body)
    assert status == 200
    text, tokens = texts_of("completion", answer)[0]
    assert text.startswith("x" * 200)
    assert 200 < tokens <= 204


@pytest.mark.parametrize("limited", ["before", "after"])
def test_an_echo_and_what_follows_may_wait_together(limited) -> None:
    """Whether it came before or after somebody began to take it; the bound holds beyond it."""
    cancelled: list[bool] = []
    channel = Channel(SimpleNamespace(cancel=lambda: cancelled.append(True)))
    token = Token(7, "x", "target")
    if limited == "before":
        channel.limit(50)
    channel.put([token] * 200)
    if limited == "after":
        channel.limit(50)
    channel.put([token] * 50)
    assert not channel.overrun
    channel.put([token])
    assert channel.overrun
    assert cancelled
