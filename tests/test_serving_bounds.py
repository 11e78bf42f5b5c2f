"""Bodies that are made to be expensive: refused by name, in short words, at little cost."""

from __future__ import annotations

import json
import re
import threading
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.batching import BatchDecoder
from specplug.serving import requests, routes
from specplug.serving.bodies import MOST_DEPTH, MOST_PARTS, BodyError, _read, read_json
from specplug.serving.errors import ApiError
from specplug.serving.requests import ChatRequest, CompletionRequest
from tests_support.serving import Running, serving

MIB = 1 << 20
LONGEST_ERROR = 2000  # bytes of an answer
BODIES: dict[str, type[requests.Body]] = {
    route.path: route.body_field.field_info.annotation
    for route in routes.router.routes
    if isinstance(route, APIRoute) and route.body_field is not None
}
CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
ASKED = b'"messages":[{"role":"user","content":"x"}]'


def filled(before: bytes, piece: bytes, after: bytes, separator: bytes = b",") -> bytes:
    """A body of nearly a MiB: a piece many times."""
    times = (MIB - len(before) - len(after)) // len(piece + separator)
    return before + separator.join([piece] * times) + after


def numbered(before: bytes, piece: bytes, after: bytes, times: int) -> bytes:
    return before + b",".join(piece % number for number in range(times)) + after


HOSTILE = {
    "messages": filled(b'{"messages":[', b"{}", b"]}"),
    "messages within the bound": b'{"messages":[' + b",".join([b"{}"] * 49_000) + b"]}",
    "parts": b'{"messages":[{"role":"user","content":[' + b",".join([b"{}"] * 49_000) + b"]}]}",
    "prompts": filled(b'{"prompt":[', b'""', b"]}"),
    "prompts within the bound": b'{"prompt":[' + b",".join([b'""'] * 149_000) + b"]}",
    "token ids": filled(b'{"prompt":[', b"-1", b"]}"),
    "token ids within the bound": b'{"prompt":[' + b",".join([b"-1"] * 149_000) + b"]}",
    "lists of token ids": filled(b'{"prompt":[', b"[0]", b"]}"),
    "lists within the bound": b'{"prompt":[' + b",".join([b"[-1]"] * 49_000) + b"]}",
    "biases": numbered(b'{%s,"logit_bias":{' % ASKED, b'"%d":101', b"}}", 75_000),
    "biases that are wrong": numbered(b'{%s,"logit_bias":{' % ASKED, b'"x%d":"y"', b"}}", 1000),
    "labels": numbered(b'{%s,"metadata":{' % ASKED, b'"%d":""', b'},"n":0}', 95_000),
    "unknown fields": numbered(b"{", b'"x%d":0', b"}", 95_000),
    "tools": b'{%s,"tools":[' % ASKED + b",".join([b'{"a":{}}'] * 29_000) + b"]}",
    "stops": b'{"stop":[' + b",".join([b"0"] * 149_000) + b"]," + ASKED + b"}",
    "allowed": b'{"allowed_token_ids":[' + b",".join([b'""'] * 65_000) + b"]," + ASKED + b"}",
    "a long role": filled(b'{"messages":[{"content":"","role":"', b"x", b'"}]}', b""),
    "a long type": filled(b'{"response_format":{"type":"', b"x", b'"},%s}' % ASKED, b""),
    "a long model": filled(b'{"model":"', b"x", b'",%s}' % ASKED, b""),
    "a long name": filled(b'{"', b"x", b'":0,%s}' % ASKED, b""),
    "a long name twice": filled(b'{"', b"x" * 500_000, b'":0}', b'":0,"'),
    "a long bias": filled(b'{%s,"logit_bias":{"' % ASKED, b"x", b'":0}}', b""),
    "digits": filled(b'{%s,"n":' % ASKED, b"9", b"}", b""),
    "4,000 digits": b'{%s,"max_tokens":' % ASKED + b"9" * 4000 + b"}",
    "spellings": b'{%s,"max_tokens":1,"n_predict":' % ASKED + b"9" * 4000 + b"}",
    "depth": b'{"metadata":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
    "half a million deep": b"[" * (MIB // 2) + b"]" * (MIB // 2),
    "open lists": b"[" * MIB,
    "closed lists": b"]" * MIB,
    "quotes": b'"' * MIB,
    "escapes": b'{"a":"' + b"\\u0000" * (MIB // 6 - 2) + b'"}',
    "backslashes": b'{"a":"' + b"\\" * (MIB - 10) + b'"}',
    "a comma": b"," * MIB,
    "not a number": b'{%s,"temperature":NaN}' % ASKED,
    "an infinite label": b'{%s,"metadata":{"a":-Infinity}}' % ASKED,
    "half a pair": b'{"messages":[{"role":"user","content":"\\ud800"}]}',
    "half a pair, as bytes": b'{"messages":[{"role":"user","content":"\xed\xa0\x80"}]}',
    "UTF-16": (b"{%s}" % ASKED).decode().encode("utf-16"),
    "UTF-32": (b"{%s}" % ASKED).decode().encode("utf-32-be"),
    "zeros": b"\0" * MIB,
}


@pytest.fixture(scope="module")
def server(batch: BatchDecoder) -> Iterator[Running]:
    with serving(batch, max_tokens=4) as running:
        yield running
        running.wait_until_free()


def check(answer: tuple[int, dict[str, str], bytes]) -> None:
    """An error that the client made, in OpenAI's shape, and short."""
    status, _, body = answer
    assert 400 <= status < 500, answer
    assert len(body) <= LONGEST_ERROR, body[:300]
    assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
    assert not re.search(rb"x{101}|9{101}", body), "it echoes what was sent"


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_shortly(server: Running, name: str) -> None:
    assert len(HOSTILE[name]) <= MIB
    paths = [COMPLETION] if b'"prompt"' in HOSTILE[name] else BODIES
    for path in paths:
        check(server.send("POST", path, HOSTILE[name]))


@contextmanager
def bystander() -> Iterator[list[float]]:
    """Seconds that a thread, each time it was to run, waited for others."""
    found, done = [0.0], threading.Event()

    def watch() -> None:
        last = time.perf_counter()
        while not done.wait(0.001):
            now = time.perf_counter()
            found.append(now - last)
            last = now

    thread = threading.Thread(target=watch)
    thread.start()
    yield found
    done.set()
    thread.join()


@pytest.mark.parametrize("name", [name for name in HOSTILE if len(HOSTILE[name]) > 50_000])
def test_hostile_bodies_hold_nobody_up(server: Running, name: str) -> None:
    """50 ms on a quiet machine; ten times that on one that others use."""
    path = COMPLETION if b'"prompt"' in HOSTILE[name] else CHAT
    with server.pauses() as loop, bystander() as thread:
        server.send("POST", path, HOSTILE[name])
    assert max(loop) < 0.5
    assert max(thread) < 0.5


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_take_little_memory(name: str) -> None:
    model = CompletionRequest if b'"prompt"' in HOSTILE[name] else ChatRequest
    tracemalloc.start()
    try:
        with pytest.raises(ApiError):
            _read(model, HOSTILE[name])
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_what_is_large_and_meant_is_read() -> None:
    ids = json.dumps({"prompt": [150_000 % 50_000] * 131_072, "max_tokens": 5}).encode()
    assert len(_read(CompletionRequest, ids).prompt) == 131_072
    text = json.dumps({"prompt": 'a,"[{' * 200_000}).encode()
    assert len(_read(CompletionRequest, text).prompt) == 10**6
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant")] * 5000
    assert len(_read(ChatRequest, json.dumps({"messages": turns}).encode()).messages) == 10_000
    one = {"messages": [{"role": "user", "content": "x"}], "metadata": 1.5}
    for encoding in ("utf-8", "utf-8-sig"):
        assert _read(ChatRequest, json.dumps(one).encode(encoding)).messages[0].content == "x"


def test_the_bounds_are_what_they_say() -> None:
    for count in (MOST_PARTS, MOST_PARTS + 1):  # commas, and two brackets
        body = b"[" + b",".join([b"0"] * (count - 1)) + b"]"
        if count == MOST_PARTS:
            assert len(read_json(body)) == count - 1
        else:
            with pytest.raises(BodyError, match=f"{MOST_PARTS} at most"):
                read_json(body)
    read_json(b"[" * MOST_DEPTH + b"]" * MOST_DEPTH)
    with pytest.raises(BodyError, match="nested 257 deep"):
        read_json(b"[" * 257 + b"]" * 257)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text('ab,"\\[]{}\u20ac\ud800'),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('a,"\\[{'), inner),
)


@given(JSON)
@settings(deadline=None, max_examples=100)
def test_json_is_read_as_the_standard_library_reads_it(value: Any) -> None:
    """Commas, quotes and brackets within texts count for nothing."""
    text = json.dumps(value)
    if "NaN" in text or "Infinity" in text:
        with pytest.raises(BodyError, match="not JSON"):
            read_json(text.encode())
    else:
        assert read_json(text.encode()) == value


def unbounded(schema: dict[str, Any], where: str) -> Iterator[str]:
    """The places of a JSON schema whose values may have any size."""
    for bounds, kind in (
        ({"maxLength", "pattern", "enum", "const"}, "string"),
        ({"maxItems"}, "array"),
        ({"maximum", "exclusiveMaximum"}, "integer"),
        ({"minimum", "exclusiveMinimum"}, "integer"),
        ({"maximum", "exclusiveMaximum"}, "number"),
        ({"minimum", "exclusiveMinimum"}, "number"),
    ):
        if schema.get("type") == kind and not bounds & schema.keys():
            yield f"{where}: {kind} without {bounds}"
    free = schema.get("type") == "object" and schema.get("additionalProperties") is not False
    if free and "maxProperties" not in schema:
        yield f"{where}: an object of any size"
    for key, value in schema.items():
        if key == "properties":
            for name, inner in value.items():
                yield from unbounded(inner, f"{where}.{name}")
        elif isinstance(value, dict) and key not in ("$defs", "discriminator"):
            yield from unbounded(value, f"{where}.{key}")
        elif isinstance(value, list):
            for inner in value:
                if isinstance(inner, dict):
                    yield from unbounded(inner, f"{where}.{key}")


def test_every_field_of_every_request_has_bounds() -> None:
    assert {CHAT: ChatRequest, COMPLETION: CompletionRequest} == BODIES
    for model in BODIES.values():
        schema = model.model_json_schema()
        parts = {model.__name__: schema, **schema["$defs"]}
        found = [one for name, part in parts.items() for one in unbounded(part, name)]
        assert not found


def test_lists_stop_at_the_first_error() -> None:
    """Every list of the requests: two wrong elements are one error."""
    seen: list[Any] = []

    def walk(core: Any) -> None:
        if isinstance(core, dict):
            if core.get("type") == "list":
                seen.append(core)
            for inner in core.values():
                walk(inner)
        elif isinstance(core, list | tuple):
            for inner in core:
                walk(inner)

    for model in BODIES.values():
        walk(model.__pydantic_core_schema__)
    assert len(seen) > 10
    assert all(one.get("fail_fast") for one in seen)


FIELDS = sorted({name for model in BODIES.values() for name in model.followed()})
VALID: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}]}


@given(
    st.sampled_from(sorted(BODIES)),
    st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=3), JSON, min_size=1, max_size=4),
    st.booleans(),
    st.none() | st.tuples(st.integers(0, 200), st.binary(max_size=3)),
)
@settings(deadline=None, max_examples=150)
def test_whatever_is_sent_is_answered_or_refused(
    server: Running, path: str, changed: dict[str, Any], valid: bool, spliced: Any
) -> None:
    body = json.dumps((VALID if path == CHAT else {"prompt": "x"}) | changed if valid else changed)
    content = body.encode()
    if spliced is not None:
        place, bytes_ = spliced
        content = content[:place] + bytes_ + content[place + len(bytes_) :]
    begun = time.monotonic()
    answer = server.send("POST", path, content)
    assert time.monotonic() - begun < 10
    if answer[0] != 200:
        check(answer)
