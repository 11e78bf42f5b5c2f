"""What an operator sees: log, metrics, traces, the page's leave; and the process itself."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

import specplug
from specplug.batching import BatchDecoder
from specplug.serving import playground
from specplug.serving.keys import KeyRing, hash_key
from specplug.serving.logs import JsonFormatter
from tests_support import command
from tests_support.serving import PATIENCE, Held, Running, serving, until

SECRET = "rosebud"


def ask(server: Running, headers: dict[str, str] | None = None, **fields):
    body = {"prompt": SECRET, "max_tokens": 12, "temperature": 0, "seed": 1, **fields}
    return server.send("POST", "/v1/completions", body, headers=headers)


# --- the log ------------------------------------------------------------------------------------


@pytest.fixture
def lines(caplog) -> list[dict]:
    """The log's lines so far, as they are written."""
    caplog.set_level(logging.INFO)

    class Lines(list):
        def __iter__(self):
            return iter([json.loads(JsonFormatter().format(one)) for one in caplog.records])

    return Lines()


def requests_of(lines) -> list[dict]:
    return [line for line in lines if line["event"] == "request"]


def test_a_line_a_request(batch, lines) -> None:
    keys = KeyRing({"anna": hash_key("k")})
    with serving(batch, keys=keys) as server:
        sent = {"Authorization": "Bearer k", "X-Request-Id": "mine-1"}
        _, headers, body = ask(server, sent, n=2)
        assert headers["x-request-id"] == "mine-1"
        _, other, _ = ask(server, {"Authorization": "Bearer k", "X-Request-Id": "not\tmine"})
        assert re.fullmatch("[0-9a-f]{32}", other["x-request-id"])
        assert ask(server)[1]["x-request-id"]
        server.wait_until_free()
    found = {line["id"]: line for line in requests_of(lines)}["mine-1"]
    usage = json.loads(body)["usage"]
    assert found.items() >= {
        "level": "info", "method": "POST", "path": "/v1/completions", "status": 200,
        "outcome": "ok", "key": "anna", "stream": False, "answers": 2,
        "completion_tokens": usage["completion_tokens"],
        "finish_reasons": [one["finish_reason"] for one in json.loads(body)["choices"]],
    }.items()  # fmt: skip
    assert 0 < found["first_token_seconds"] <= found["seconds"]
    assert found["acceptance_length"] >= 1
    assert found["drafted_tokens"] >= found["accepted_tokens"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found["time"])
    assert [line["outcome"] for line in requests_of(lines)] == ["ok", "ok", "refused"]


def test_the_log_has_no_text_unless_asked_for(batch, lines, caplog) -> None:
    with serving(batch) as server, Held(batch) as engine:
        engine.go()
        for fields in ({}, {"stream": True}, {"n": 0}, {"prompt": SECRET * 500}, {"model": SECRET}):
            ask(server, **fields)
        server.send("POST", "/v1/completions", f'{{"prompt": "{SECRET}'.encode())
        engine.failure = RuntimeError("no")
        assert ask(server)[0] == 500
        engine.failure = None
        server.wait_until_free()
        assert len(requests_of(lines)) == 7  # and none for /metrics
        assert SECRET not in caplog.text + "".join(map(json.dumps, lines))
    with serving(batch, log_prompts=True) as server:
        text = json.loads(ask(server)[2])["choices"][0]["text"]
        server.wait_until_free()
    [line] = [line for line in requests_of(lines) if "prompt" in line]
    assert line.items() >= {"prompt": [SECRET], "completions": [text]}.items()


def test_a_failure_is_one_object_too() -> None:
    try:
        raise ValueError("why")
    except ValueError:
        record = logging.LogRecord("a", logging.ERROR, "", 1, "it %s", ("broke",), sys.exc_info())
    line = json.loads(JsonFormatter().format(record))
    assert (line["level"], line["message"]) == ("error", "it broke")
    assert "ValueError: why" in line["traceback"]


# --- metrics ------------------------------------------------------------------------------------


def test_metrics(batch) -> None:
    with serving(batch) as server:
        answers = [json.loads(ask(server)[2]), json.loads(ask(server, n=2, temperature=1)[2])]
        ask(server, n=0)
        server.wait_until_free()
        told = [answer["metrics"]["speculative_decoding"] for answer in answers]
        tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
        assert server.metric("generation_tokens_total") == tokens
        assert server.metric("prompt_tokens_total") == 3 * len(SECRET)
        assert server.metric("prefix_cache_queries_total") == 3 * len(SECRET)
        for name, field in (
            ("spec_decode_num_draft_tokens_total", "num_draft_tokens"),
            ("spec_decode_num_accepted_tokens_total", "num_accepted_draft_tokens"),
        ):
            assert server.metric(name) == sum(one[field] for one in told) > 0
        accepted = [n for one in told for n in one["per_step_accepted"]]
        drafts = [n for one in told for n in one["per_step_drafted"] if n]
        assert server.metric("spec_decode_num_drafts_total") == len(drafts)
        for position in range(4):
            name = f'spec_decode_num_accepted_tokens_per_pos_total{{position="{position}"}}'
            assert server.metric(name) == sum(n > position for n in accepted)
        path = 'path="/v1/completions"'
        assert server.metric(f'requests_total{{outcome="ok",{path},status="200"}}') == 2
        assert server.metric(f'requests_total{{outcome="refused",{path},status="400"}}') == 1
        reasons = [choice["finish_reason"] for answer in answers for choice in answer["choices"]]
        for reason in set(reasons):
            name = f'answers_total{{finish_reason="{reason}"}}'
            assert server.metric(name) == reasons.count(reason)
        assert server.metric("time_to_first_token_seconds_count") == 2
        assert server.metric("e2e_request_latency_seconds_count") == 2
        assert server.metric("request_queue_time_seconds_count") == 3
        assert server.metric("inter_token_latency_seconds_count") == tokens - 3
        ask(server, prompt="again " * 40)
        ask(server, prompt="again " * 40)
        assert server.metric("prefix_cache_hits_total") >= 128


def test_gauges_follow_what_runs(batch) -> None:
    with serving(batch) as server, Held(batch, 0.01) as engine, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, server, max_tokens=400) for _ in range(3)]
        until(lambda: server.metric("num_requests_running") == 2)
        until(lambda: server.metric("num_requests_waiting") == 1)
        assert server.metric("requests_in_flight") == 4  # this one, too
        engine.go()
        assert all(one.result()[0] == 200 for one in asked)
        server.wait_until_free()


# --- traces ------------------------------------------------------------------------------------


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Something that takes OTLP over HTTP."""
    taken: list[tuple[str, bytes]] = []

    class Taker(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            taken.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None: ...

    with http.server.HTTPServer(("127.0.0.1", 0), Taker) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def test_traces_go_where_they_are_told_to(batch) -> None:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    parent = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
    with collector() as (address, taken), serving(batch, otlp_endpoint=address) as server:
        ask(server, {"traceparent": parent, "X-Request-Id": "traced"})
    [(path, content)] = taken
    assert path == "/v1/traces"
    assert SECRET.encode() not in content
    made = ExportTraceServiceRequest.FromString(content)
    [span] = made.resource_spans[0].scope_spans[0].spans
    assert span.name == "POST /v1/completions"
    assert span.trace_id.hex() == parent.split("-")[1]
    assert span.parent_span_id.hex() == parent.split("-")[2]
    names = {one.key for one in span.attributes}
    assert {"specplug.request_id", "specplug.completion_tokens"} <= names
    assert span.start_time_unix_nano < span.events[0].time_unix_nano < span.end_time_unix_nano


def test_nothing_is_sent_by_default(batch, monkeypatch) -> None:
    from specplug.serving import tracing
    from specplug.serving.settings import ServerSettings

    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    assert tracing.tracer_for(ServerSettings()) is None
    connected = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, to: connected.append(to))
    with serving(batch):
        pass
    assert not connected


# --- pages of other origins, and our own ----------------------------------------------------------


def test_other_origins_need_leave(batch) -> None:
    ours = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
    with serving(batch) as server:
        assert "access-control-allow-origin" not in ask(server, ours)[1]
    with serving(batch, cors_origins=("https://ours.example",)) as server:
        status, headers, _ = server.send("OPTIONS", "/v1/completions", headers=ours)
        assert (status, headers["access-control-allow-origin"]) == (200, ours["Origin"])
        assert ask(server, ours, n=0)[1]["access-control-allow-origin"] == ours["Origin"]
        assert "access-control-allow-origin" not in ask(server, {"Origin": "https://x"})[1]


PAGE = "<html><style>p{}</style><script type='module'>\nlet a\n</script><p onclick='no()'></html>"


@pytest.fixture
def own_page(tmp_path: Path, monkeypatch) -> Iterator[None]:
    (tmp_path / "page.html").write_text(PAGE)
    monkeypatch.setattr(playground, "files", lambda package: tmp_path)
    playground._content.cache_clear()
    yield
    playground._content.cache_clear()


@pytest.mark.usefixtures("own_page")
def test_the_page_may_do_what_is_in_it(batch) -> None:
    with serving(batch) as server:
        status, headers, body = server.send("GET", "/")
    assert (status, body.decode()) == (200, PAGE)
    policy = headers["content-security-policy"]
    for kind, content in (("style", "p{}"), ("script", "\nlet a\n")):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'; ")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


# --- the process --------------------------------------------------------------------------------


@contextmanager
def process(bundle: Path, *arguments: object) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """``specplug serve`` and its port."""
    line = [sys.executable, "-m", "specplug", "serve", str(bundle), "--port", "0"]
    line += ["--max-batch", "2", "--draft-tokens", "2", *map(str, arguments)]
    with subprocess.Popen(
        line,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "400"},
    ) as running:
        try:
            assert running.stdout
            address = running.stdout.readline()
            assert address.startswith("http://127.0.0.1:"), running.communicate(timeout=PATIENCE)
            yield running, int(address.rpartition(":")[2])
        finally:
            running.kill()


def test_sigterm_under_load_drops_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    made = command.specplug("hash-key", "anna", text="a key of anna's own\n")
    keys.write_text(made.stdout)
    with process(tiny_bundle, "--api-key-file", keys) as (running, port):
        url = f"http://127.0.0.1:{port}/v1"
        key = "a key of anna's own"
        client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=3 * PATIENCE)
        begun = threading.Semaphore(0)

        def stream(number: int) -> str | None:
            chunks = client.completions.create(
                model=tiny_bundle.name.removesuffix(".bundle"), prompt=f"{number}", stream=True,
                max_tokens=400, temperature=0, logit_bias={"256": -100},
            )  # fmt: skip
            reason = None
            for chunk in chunks:
                if chunk.choices[0].text:
                    begun.release()
                reason = chunk.choices[0].finish_reason
            return reason

        with client, ThreadPoolExecutor(6) as pool:
            asked = [pool.submit(stream, number) for number in range(6)]
            assert begun.acquire(timeout=PATIENCE)
            until(lambda: Running(None, port).metric("requests_in_flight") == 7)  # with this one
            running.send_signal(signal.SIGTERM)
            assert [one.result(3 * PATIENCE) for one in asked] == ["length"] * 6
        _, log = running.communicate(timeout=PATIENCE)
        assert running.returncode == 0, log
        lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
        assert [line["outcome"] for line in lines if line["event"] == "request"] == ["ok"] * 6
        assert any("stopping" in line.get("message", "") for line in lines)
        assert f"chmod 600 {keys}" in log


def test_a_second_signal_ends_it_at_once(tiny_bundle: Path) -> None:
    with process(tiny_bundle) as (running, port), socket.socket() as connection:
        connection.connect(("127.0.0.1", port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        head += b"Content-Type: application/json\r\n"
        connection.sendall(head + b"Content-Length: 9\r\n\r\n")  # and never more
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        running.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            running.wait(0.5)
        running.send_signal(signal.SIGTERM)
        assert running.wait(2) == 128 + signal.SIGTERM


def test_an_address_that_is_taken(tiny_bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command.specplug("serve", tiny_bundle, "--port", port)
    assert done.returncode == 1
    assert f"cannot listen at 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_others_may_ask_only_knowingly(tiny_bundle: Path, monkeypatch, capsys) -> None:
    from specplug.cli import serve
    from specplug.serving import server

    def stop(*arguments: object) -> None:
        raise OSError("far enough")

    monkeypatch.setattr(server, "bind", stop)
    for host, warned in (("0.0.0.0", True), ("127.0.0.1", False)):
        with pytest.raises(OSError, match="far enough"):
            serve.serve(tiny_bundle, host=host)
        assert ("whoever reaches it may ask" in capsys.readouterr().err) == warned


def test_hashed_keys() -> None:
    made = command.specplug("hash-key", "anna", text="0123456789abcdef\n")
    assert made.stdout == f"anna:{hash_key('0123456789abcdef')}\n"
    for name, key, says in (("anna", "short", "can be guessed"), ("an na", "x" * 20, "a name has")):
        wrong = command.specplug("hash-key", name, text=key)
        assert wrong.returncode == 1
        assert says in wrong.stderr


def test_without_the_extra_the_command_says_what_to_install(tiny_bundle: Path) -> None:
    code = "import sys; sys.modules['fastapi'] = None\nfrom specplug.cli import main\nmain()"
    line = [sys.executable, "-c", code, "serve", str(tiny_bundle)]
    done = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 1
    assert "pip install 'specplug[serve]'" in done.stderr


# --- real weights -------------------------------------------------------------------------------


@pytest.mark.weights
def test_real_weights_answer_alike_streamed_and_not(real_bundle: Path) -> None:
    asked = [{"role": "user", "content": "Name three rivers of Europe."}]
    with specplug.SpeculativeDecoder.from_bundle(real_bundle, drafter="none") as alone:
        wanted = alone.generate(asked, max_tokens=40).text
    with (
        BatchDecoder.from_bundle(real_bundle, max_batch=2) as decoder,
        serving(decoder, request_timeout=60) as server,
        server.client() as client,
    ):
        fields = {"model": "tiny", "messages": asked, "max_tokens": 40, "temperature": 0}
        whole = client.chat.completions.create(**fields, n=2)
        pieces = client.chat.completions.create(**fields, stream=True)
        streamed = "".join(chunk.choices[0].delta.content or "" for chunk in pieces)
        assert [choice.message.content for choice in whole.choices] == [wanted] * 2
        assert streamed == wanted
        again = client.chat.completions.create(
            **fields, prediction={"type": "content", "content": wanted}
        )
        details = again.usage.completion_tokens_details
        assert details.accepted_prediction_tokens >= 0.9 * again.usage.completion_tokens
