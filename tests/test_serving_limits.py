"""Keys, places, time, and clients that go away or do not read: nobody holds a place for ever."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest

from specplug.serving.keys import KeyRing, hash_key, readable_by_others
from specplug.serving.settings import ServerSettings
from tests_support.serving import MODEL, Held, Running, serving, until

LONG = {"prompt": "x", "max_tokens": 900, "temperature": 0, "logit_bias": {"256": -100}}


def ask(server: Running, key: str | None = None, **fields) -> tuple[int, dict[str, str], bytes]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    body = {"prompt": "x", "max_tokens": 4, "temperature": 0, **fields}
    return server.send("POST", "/v1/completions", body, headers=headers)


# --- keys ---------------------------------------------------------------------------------------

KEYS = KeyRing({"anna": hash_key("key of anna"), "ben": hash_key("key of ben")})


def test_only_those_with_a_key_are_answered(batch) -> None:
    with serving(batch, keys=KEYS) as server:
        for key in (None, "", "key of carl", "anna", hash_key("key of anna")):
            status, headers, body = ask(server, key)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(body)["error"]["code"] == "invalid_api_key"
        for key in ("key of anna", "key of ben"):
            assert ask(server, key)[0] == 200
        assert server.send("GET", "/v1/models")[0] == 401
        assert server.send("GET", "/v1/nothing")[0] == 401
        for path in ("/health", "/ready", "/metrics"):
            assert server.send("GET", path)[0] == 200
        with server.client("wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()


def test_a_body_is_not_read_for_those_without(batch) -> None:
    with serving(batch, keys=KEYS) as server, socket.socket() as connection:
        connection.settimeout(20)
        connection.connect(("127.0.0.1", server.port))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        connection.sendall(head)
        assert connection.recv(100).startswith(b"HTTP/1.1 401 ")


def test_prefixes_are_found_within_a_key_only(batch) -> None:
    with serving(batch, keys=KEYS) as server:

        def cached(key: str) -> int:
            answer = json.loads(ask(server, key, prompt="of keys " * 30)[2])
            return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

        assert cached("key of anna") == 0
        assert cached("key of anna") > 0
        assert cached("key of ben") == 0


def test_key_files(tmp_path: Path) -> None:
    text = f"# ours\n\n anna:{hash_key('a')}\nben@x.org:{hash_key('b')}\n"
    ring = KeyRing.parse(text, "keys")
    assert [ring.owner(key) for key in ("a", "b", "c", "")] == ["anna", "ben@x.org", None, None]
    for wrong, says in (
        ("", "holds no key"),
        ("anna:abc", "line 1: need name:hash"),
        ("anna", "line 1: need name:hash"),
        (f"an na:{hash_key('a')}", "line 1: need name:hash"),
        (text + f"anna:{hash_key('c')}", "two keys named anna"),
    ):
        with pytest.raises(ValueError, match=says):
            KeyRing.parse(wrong, "keys")
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    assert not readable_by_others(file)
    file.chmod(0o640)
    assert readable_by_others(file)


# --- places -------------------------------------------------------------------------------------


def test_more_than_can_wait_are_sent_away(batch) -> None:
    with serving(batch, max_waiting=1) as server, Held(batch) as engine:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, server) for _ in range(3)]
            until(lambda: server.service.admission.taken == 3)
            status, headers, body = ask(server)
            assert status == 429
            assert 1 <= int(headers["retry-after"]) <= 60
            assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
            engine.go()
            assert [one.result()[0] for one in asked] == [200] * 3
        assert ask(server, n=3)[0] == 200
        assert ask(server, n=4)[0] == 400  # it could never be answered
        server.wait_until_free()


def test_a_place_that_is_free_takes_a_request_whole(batch) -> None:
    with serving(batch, max_waiting=1) as server, Held(batch) as engine:
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(ask, server, n=2)]
            until(lambda: server.service.admission.taken == 2)
            asked.append(pool.submit(ask, server, n=3))
            until(lambda: server.service.admission.taken == 5)
            assert ask(server)[0] == 429
            engine.go()
            assert [one.result()[0] for one in asked] == [200] * 2
        server.wait_until_free()


def test_a_key_has_its_share(batch) -> None:
    with serving(batch, keys=KEYS, max_per_key=1) as server, Held(batch) as engine:
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(ask, server, "key of anna")
            until(lambda: server.service.admission.taken == 1)
            status, headers, _ = ask(server, "key of anna")
            assert (status, "retry-after" in headers) == (429, True)
            other = pool.submit(ask, server, "key of ben")
            until(lambda: server.service.admission.taken == 2)
            engine.go()
            assert first.result()[0] == other.result()[0] == 200
        assert ask(server, "key of anna")[0] == 200
        server.wait_until_free()


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_does_not_begin_in_time(batch, stream) -> None:
    with serving(batch, request_timeout=0.2) as server, Held(batch) as engine:
        status, _, body = ask(server, stream=stream)
        assert status == 504
        assert json.loads(body)["error"]["code"] == "timeout"
        engine.go()
        server.wait_until_free()


def test_an_answer_that_does_not_end_in_time(batch) -> None:
    with serving(batch, request_timeout=0.5) as server, Held(batch, 0.02):
        assert server.send("POST", "/v1/completions", LONG)[0] == 504
        with server.client() as client:
            stream = client.completions.create(**LONG, model=MODEL, stream=True)
            assert next(stream).choices  # it has begun
            with pytest.raises(openai.APIError, match="longer than this server allows"):
                list(stream)
        server.wait_until_free()
        assert server.metric(
            'requests_total{outcome="timeout",path="/v1/completions",status="200"}'
        )


# --- clients that go away, and clients that do not read -------------------------------------------


def request(body: dict) -> bytes:
    content = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("when", ["waiting", "running"])
def test_who_goes_away_frees_the_place(batch, stream, when) -> None:
    with serving(batch) as server, Held(batch, 0.0 if when == "waiting" else 0.01) as engine:
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
                connection.sendall(request({**LONG, "stream": stream, "n": 2}))
                until(lambda: server.service.admission.taken == 2)
                if when == "running":
                    until(lambda: batch.running == 2)
                    if stream:
                        assert connection.recv(100).startswith(b"HTTP/1.1 200")
            until(lambda: server.service.admission.taken == 0)
            if when == "running":
                server.wait_until_free()
        calls = engine.calls
        engine.go()
        server.wait_until_free()
        assert engine.calls <= calls + 6  # not all the 900 tokens
        assert ask(server)[0] == 200
        line = 'requests_total{{outcome="client_gone",path="/v1/completions",status="{}"}}'
        status = "200" if stream and when == "running" else "499"
        assert server.metric(line.format(status)) == 3


def small_window(port: int) -> socket.socket:
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    made.settimeout(20)
    made.connect(("127.0.0.1", port))
    return made


def test_a_reader_that_stalls_is_given_up(batch) -> None:
    """What it is sent is more than the sockets and the server's own buffer hold.

    Whether the server or the kernel gives it up first depends on how fast the answer is made.
    """
    body = {**LONG, "stream": True, "n": 8, "logprobs": 20}
    lines = [
        f'requests_total{{outcome="{outcome}",path="/v1/completions",status="200"}}'
        for outcome in ("slow_reader", "client_gone")
    ]
    with serving(batch, send_timeout=0.5, max_choices=8) as server:
        with small_window(server.port) as connection:
            connection.sendall(request(body))
            until(lambda: sum(map(server.metric, lines)) == 1)
            server.wait_until_free()
            until(lambda: not open_connections(server))
        assert ask(server)[0] == 200


def test_tokens_do_not_pile_up_for_a_slow_reader(batch) -> None:
    body = {**LONG, "stream": True, "n": 8, "logprobs": 20}
    with serving(batch, send_timeout=60, max_choices=8, stream_buffer=50) as server:
        with small_window(server.port) as connection:
            connection.sendall(request(body))
            until(lambda: server.service.admission.taken == 8)
            channels = server.service.worker._channels
            until(lambda: len(channels) == 8)
            until(lambda: batch.idle)  # given up, although the reader has time left
            assert all(channel.overrun for channel in channels.values())
            assert max(len(channel._tokens) for channel in channels.values()) <= 50
            while connection.recv(1 << 16):
                pass
        server.wait_until_free()
        line = 'requests_total{outcome="slow_reader",path="/v1/completions",status="200"}'
        assert server.metric(line) == 1


def open_connections(server: Running) -> int:
    """Of clients: lines of the kernel's table in state ESTABLISHED at the server's end."""
    port = f":{server.port:04X}"
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    return sum(line.split()[1].endswith(port) and line.split()[3] == "01" for line in lines)


def test_a_reader_that_takes_its_time_gets_everything(batch) -> None:
    with serving(batch, send_timeout=0.5) as server, server.client() as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=20, stream=True)
        got = []
        for chunk in stream:
            got.append(chunk)
            time.sleep(0.05)
        assert got[-1].choices[0].finish_reason


# --- the end ------------------------------------------------------------------------------------


def test_draining_refuses_the_new_and_finishes_the_old(batch) -> None:
    with serving(batch) as server, Held(batch) as engine, ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(ask, server) for _ in range(3)]
        until(lambda: server.service.admission.taken == 3)
        server.service.drain()
        status, headers, body = ask(server)
        assert (status, int(headers["retry-after"]) > 0) == (503, True)
        assert json.loads(body)["error"]["code"] == "unavailable"
        assert server.send("GET", "/ready")[0] == 503
        assert server.send("GET", "/health")[0] == 200
        engine.go()
        assert [one.result()[0] for one in asked] == [200] * 3


def test_what_does_not_end_in_time_is_told_so(batch) -> None:
    answers: list[tuple[int, dict[str, str], bytes]] = []
    with Held(batch, 0.02), serving(batch, shutdown_timeout=0.2) as server:
        asking = threading.Thread(
            target=lambda: answers.append(server.send("POST", "/v1/completions", LONG))
        )
        asking.start()
        until(lambda: batch.running == 1)
    asking.join()
    [(status, _, body)] = answers
    assert status == 503
    assert "shutting down" in json.loads(body)["error"]["message"]
    while not batch.idle:
        batch.step()


def test_settings_that_nothing_could_keep_to() -> None:
    for name, value in (("max_choices", 0), ("max_waiting", -1), ("send_timeout", 0.0)):
        with pytest.raises(ValueError, match=f"{name} {value}: need at least"):
            ServerSettings(**{name: value})
    ServerSettings(max_waiting=0, max_per_key=None, shutdown_timeout=0)
