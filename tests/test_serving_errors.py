"""What the server refuses: the status, and an error in OpenAI's shape that names the field."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import openai
import pytest

from specplug import Proposal
from specplug.batching import BatchDecoder
from specplug.budget import Budget
from specplug.generation import Generation
from tests_support.serving import MODEL, Held, Running, serving, until

LONGEST = 4000  # bytes of a body


@pytest.fixture(scope="module")
def server(batch: BatchDecoder) -> Iterator[Running]:
    limits = {"max_choices": 4, "max_tokens": 50, "max_body_bytes": LONGEST}
    with serving(batch, **limits, max_prompt_tokens=1190) as running:
        yield running
        running.wait_until_free()


def error_of(body: bytes) -> dict[str, object]:
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return error


def refused(server: Running, path: str, body: object, status: int = 400) -> dict[str, object]:
    answer = server.send("POST", path, body)
    assert answer[0] == status, answer
    assert answer[1]["content-type"] == "application/json"
    return error_of(answer[2])


ASKED = [{"role": "user", "content": "x"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
PICTURE = {"type": "image_url", "image_url": {"url": "data:,"}}

WRONG = [
    ({"n": 0}, "n", "invalid_value"),
    ({"n": 5}, "n", "invalid_value"),
    ({"n": "2"}, "n", "invalid_value"),
    ({"seed": 1.5}, "seed", "invalid_value"),
    ({"stop": ["a"] * 65}, "stop", "invalid_value"),
    ({"stop": ""}, "stop", "invalid_value"),
    ({"stop": [""]}, "stop.0", "invalid_value"),
    ({"max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"max_tokens": 51}, "max_tokens", "invalid_value"),
    ({"temperature": -1}, "temperature", "invalid_value"),
    ({"temperature": "hot"}, "temperature", "invalid_value"),
    ({"top_p": 0}, "top_p", "invalid_value"),
    ({"top_k": -2}, "top_k", "invalid_value"),
    ({"min_p": 2}, "min_p", "invalid_value"),
    ({"repetition_penalty": 0}, "repetition_penalty", "invalid_value"),
    ({"presence_penalty": 3}, "presence_penalty", "invalid_value"),
    ({"frequency_penalty": -3}, "frequency_penalty", "invalid_value"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a", "invalid_value"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1", "invalid_value"),
    ({"logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"response_format": {"type": "yaml"}}, "response_format", "invalid_value"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", None),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "x"}}}},
        "response_format",
        "invalid_value",
    ),
    ({"prediction": {"type": "content"}}, "prediction.content", "missing_required_parameter"),
    ({"prediction": {"type": "x", "content": ""}}, "prediction.type", "invalid_value"),
    ({"speculation": "no"}, "speculation", "invalid_value"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage", "invalid_value"),
]
WRONG_CHATS = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": "hello"}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages.0.content", "missing_required_parameter"),
    ({"messages": [{"role": "tool", "content": ""}]}, "messages.0.role", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [PICTURE]}]},
        "messages.0.content.0.type",
        "invalid_value",
    ),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages.0.content", "invalid_value"),
    (
        {"messages": [{"role": "assistant", "content": "", "tool_calls": TOOLS}]},
        "messages.0.tool_calls",
        "unsupported_parameter",
    ),
    ({"top_logprobs": 3}, "top_logprobs", None),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "invalid_value"),
    ({"max_completion_tokens": 51}, "max_completion_tokens", "invalid_value"),
    ({"tools": TOOLS}, "tools", "unsupported_parameter"),
    ({"tool_choice": "required"}, "tool_choice", "unsupported_parameter"),
    ({"functions": [{"name": "f"}]}, "functions", "unsupported_parameter"),
    ({"function_call": {"name": "f"}}, "function_call", "unsupported_parameter"),
    ({"modalities": ["text", "audio"]}, "modalities", "unsupported_parameter"),
    ({"audio": {"voice": "x"}}, "audio", "unsupported_parameter"),
    ({"web_search_options": {}}, "web_search_options", "unsupported_parameter"),
]
WRONG_COMPLETIONS = [
    ({"prompt": None}, "prompt", "invalid_value"),
    ({"prompt": ""}, "prompt", "invalid_value"),
    ({"prompt": []}, "prompt", "invalid_value"),
    ({"prompt": [[]]}, "prompt.0", "invalid_value"),
    ({"prompt": [1, "a"]}, "prompt.1", "invalid_value"),
    ({"prompt": ["a", 1]}, "prompt.1", "invalid_value"),
    ({"prompt": [99999]}, "prompt", "invalid_value"),
    ({"prompt": ["a"] * 5}, "n", "invalid_value"),
    ({"logprobs": 21}, "logprobs", "invalid_value"),
    ({"logprobs": True}, "logprobs", "invalid_value"),
    ({"best_of": 2}, "best_of", "unsupported_parameter"),
    ({"suffix": "end"}, "suffix", "unsupported_parameter"),
]


HALF = "\ud800"  # of a surrogate pair: JSON can write it, and no UTF-8 has it
HALVES = [
    {HALF: 1},
    {f"user{HALF}": 1},
    {"stream_options": {HALF: 1}},
    {"messages": [{"role": "user", "content": "x", HALF: 1}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "x", HALF: 1}]}]},
    {"messages": [{"role": HALF, "content": "x"}]},
    {"logit_bias": {HALF: 1}},
    {"chat_template_kwargs": {HALF: 1}},
    {"response_format": {"type": HALF}},
    {"response_format": {"type": "text", HALF: 1}},
    {"structured_outputs": {HALF: 1}},
    {"prediction": {"type": "content", "content": "x", HALF: 1}},
    {"stop": [HALF]},
    {"bad_words": [HALF]},
    {"guided_regex": HALF},
    {"grammar": HALF},
    {"guided_json": {"type": "object", "properties": {HALF: {"type": "string"}}}},
    {"guided_choice": [HALF]},
]


@pytest.mark.parametrize("number", range(len(HALVES)))
def test_half_a_surrogate_pair_is_refused_wherever_it_is(server, number) -> None:
    refused(server, "/v1/chat/completions", {"messages": ASKED, "max_tokens": 1} | HALVES[number])


@pytest.mark.parametrize(("fields", "param", "code"), WRONG + WRONG_CHATS)
def test_wrong_chats(server, fields, param, code) -> None:
    error = refused(server, "/v1/chat/completions", {"messages": ASKED, **fields})
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code or error["code"])


@pytest.mark.parametrize(("fields", "param", "code"), WRONG + WRONG_COMPLETIONS)
@pytest.mark.parametrize("stream", [True, False])
def test_wrong_completions(server, fields, param, code, stream) -> None:
    error = refused(server, "/v1/completions", {"prompt": "x", "stream": stream, **fields})
    assert error["type"] == "invalid_request_error"
    assert (error["param"], error["code"]) == (param, code or error["code"])


def test_prompts_that_are_too_long(server, batch) -> None:
    limit = batch.target.spec.context_limit
    for path, name in (("chat/completions", "messages"), ("completions", "prompt")):
        for size, length in ((limit, 1), (limit - 40, 50)):
            text = "x" * size
            asked = text if name == "prompt" else [{"role": "user", "content": text}]
            error = refused(server, f"/v1/{path}", {name: asked, "max_tokens": length})
            assert error["code"] == "context_length_exceeded"
            assert error["param"] == name
            assert str(limit) in error["message"]
    error = refused(server, "/v1/completions", {"prompt": "x" * 1191, "max_tokens": 1})
    assert error["code"] == "prompt_too_long"


def test_the_client_raises_its_own_errors(server) -> None:
    with server.client() as client:
        with pytest.raises(openai.BadRequestError) as wrong:
            client.chat.completions.create(model=MODEL, messages=ASKED, temperature=3)
        assert (wrong.value.param, wrong.value.code) == ("temperature", "invalid_value")
        with pytest.raises(openai.NotFoundError) as wrong:
            client.chat.completions.create(model="gpt", messages=ASKED)
        assert wrong.value.code == "model_not_found"


def test_addresses_and_methods(server) -> None:
    for method, path, status in (
        ("GET", "/v2/anything", 404),
        ("GET", "/v1/models/other/model", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
        ("POST", "/health", 405),
        ("GET", "/docs", 404),  # whose scripts would come from elsewhere
    ):
        answer = server.send(method, path)
        assert answer[0] == status
        error_of(answer[2])
        assert status != 405 or "allow" in answer[1]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"[1]", "invalid_value"),
        (b'"text"', "invalid_value"),
        (b"null", None),
        (b'{"messages": [{"role": "user", "content": "x"}], "n": 1, "n": 2}', "invalid_json"),
        (b'{"messages": [{"role": "user", "content": "x", "content": "y"}]}', "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"messages": ' + b"[" * 1500 + b"]" * 1500 + b"}", None),
        (b'{"n": ' + b"9" * 3900 + b"}", None),
        (b'{"temperature": NaN, "messages": [{"role": "user", "content": "x"}]}', None),
    ],
)
def test_bodies_that_are_no_requests(server, body, code) -> None:
    error = refused(server, "/v1/chat/completions", body)
    assert error["code"] == (code or error["code"])


def test_other_kinds_of_content(server) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        headers = {"Content-Type": kind}
        status, _, body = server.send("POST", "/v1/completions", b"{}", headers=headers)
        assert status == 415
        assert kind in error_of(body)["message"]
    fine = {"Content-Type": "application/json; charset=utf-8"}
    body = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
    assert server.send("POST", "/v1/completions", body, headers=fine)[0] == 200


def raw(server: Running, *pieces: bytes) -> bytes:
    """What comes for bytes on a connection, until it is closed."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        for piece in pieces:
            connection.sendall(piece)
        found = b""
        while piece := connection.recv(1 << 16):
            found += piece
    return found


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def test_bodies_that_are_too_large(server) -> None:
    body = json.dumps({"prompt": "x" * LONGEST}).encode()
    status, headers, answer = server.send("POST", "/v1/completions", body)
    assert (status, headers["connection"]) == (413, "close")
    assert str(LONGEST) in error_of(answer)["message"]
    chunk = b"%x\r\n%s\r\n" % (1000, b" " * 1000)
    answer = raw(server, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk * 5, b"0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    claimed = b"Content-Length: 1000000000000\r\n\r\n"
    assert raw(server, HEAD + claimed).startswith(b"HTTP/1.1 413 ")  # at once
    endless = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
    with pytest.raises(ConnectionError):  # nobody is listened to for ever
        raw(server, endless, *[chunk] * 100_000)


def test_a_body_that_does_not_come(batch) -> None:
    with serving(batch, body_timeout=0.2) as server:
        answer = raw(server, HEAD + b'Content-Length: 100\r\n\r\n{"prompt"')
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert error_of(answer.split(b"\r\n\r\n")[1])["code"] == "timeout"
        server.wait_until_free()


def test_failures_of_the_engine_are_told_without_their_reasons(batch, caplog) -> None:
    with serving(batch) as server, Held(batch) as engine:
        engine.failure = RuntimeError("secret place /srv/model")
        engine.go()
        for stream in (False, True):
            body = {"prompt": "x", "stream": stream}
            status, headers, answer = server.send("POST", "/v1/completions", body)
            assert status == 500
            error = error_of(answer)
            assert error["type"] == "server_error"
            assert "secret" not in answer.decode()
            assert headers["x-request-id"] in error["message"]
            assert headers["x-request-id"] in caplog.text
        engine.failure = None
        assert server.send("POST", "/v1/completions", body)[0] == 200
        server.wait_until_free()


def test_logits_that_are_no_numbers_are_the_servers_fault(batch, monkeypatch) -> None:
    forward = batch.target.forward

    class Broken:
        def __init__(self, step) -> None:
            self._made = forward(step)

        def __getattr__(self, name: str):
            return getattr(self._made, name)

        def logits(self):
            return np.full_like(self._made.logits(), np.nan)

    monkeypatch.setattr(batch.target, "forward", Broken)
    with serving(batch) as server:
        for temperature in (0, 1):
            body = {"prompt": "x", "temperature": temperature, "bad_words": ["a"]}
            status, _, answer = server.send("POST", "/v1/completions", body)
            assert (status, error_of(answer)["code"]) == (500, "internal_error")
        server.wait_until_free()


def test_a_stream_that_fails_on_its_way_says_so(batch) -> None:
    with serving(batch) as server, Held(batch, 0.02) as engine, server.client() as client:
        asked = {"prompt": "x", "max_tokens": 100, "logit_bias": {"256": -100}}  # no end
        stream = client.completions.create(model=MODEL, **asked, stream=True)
        next(stream)
        engine.failure = RuntimeError("secret")
        with pytest.raises(openai.APIError, match="the server failed"):
            list(stream)
        server.wait_until_free()


def test_a_drafter_that_fails_ends_its_own_answer_alone(batch, monkeypatch) -> None:
    propose = Generation.propose

    def failing(generation: Generation, budget: Budget | None) -> Proposal:
        if bytes(generation.prompt[:1]) == bytes(batch.encode("!", chat=False)):
            raise ZeroDivisionError
        return propose(generation, budget)

    monkeypatch.setattr(Generation, "propose", failing)
    with serving(batch) as server, ThreadPoolExecutor(2) as pool:
        ask = {"max_tokens": 30, "temperature": 0, "logit_bias": {"256": -100}}
        asked = [
            pool.submit(server.send, "POST", "/v1/completions", {"prompt": prompt, **ask})
            for prompt in ("fine", "!")
        ]
        assert [one.result()[0] for one in asked] == [200, 500]
        assert server.send("GET", "/health")[0] == 200
        server.wait_until_free()


@pytest.mark.parametrize("kind", [ZeroDivisionError, MemoryError, SystemExit, BaseException])
def test_a_decoder_that_breaks_makes_the_server_unhealthy_until_it_works(
    batch, monkeypatch, kind
) -> None:
    def broken() -> None:
        raise kind("secret")

    monkeypatch.setattr("specplug.serving.worker._LONGEST_PAUSE", 0.05)
    with serving(batch) as server:
        assert server.send("GET", "/health")[0] == server.send("GET", "/ready")[0] == 200
        monkeypatch.setattr(batch, "step", broken)
        status, _, body = server.send("POST", "/v1/completions", {"prompt": "x"})
        assert status == 500
        assert b"secret" not in body
        for path in ("/health", "/ready"):  # it is tried again and again
            until(lambda path=path: server.send("GET", path)[0] == 503)
        assert b"secret" not in server.send("GET", "/health")[2]
        monkeypatch.delattr(batch, "step")
        body = {"prompt": "x", "max_tokens": 3, "temperature": 0}
        assert server.send("POST", "/v1/completions", body)[0] == 200
        for path in ("/health", "/ready"):
            assert server.send("GET", path)[0] == 200
        server.wait_until_free()
