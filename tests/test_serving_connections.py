"""Slow clients, silent ones, and too many: they end, and nobody else is kept waiting."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from specplug.serving.keys import KeyRing, hash_key
from tests_support.serving import PATIENCE, Held, Running, serving, until

BODY = {"prompt": "x", "max_tokens": 4, "temperature": 0}
HEAD = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def connect(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)


def read(connection: socket.socket) -> bytes:
    """All that comes until the server ends the connection."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            found += piece
    return found


def ask(server: Running, **fields) -> int:
    return server.send("POST", "/v1/completions", BODY | fields)[0]


def drip(connection: socket.socket, content: bytes, pause: float = 0.05) -> None:
    """Send byte by byte until the server has enough."""
    with contextlib.suppress(OSError):
        for place in range(len(content)):
            connection.sendall(content[place : place + 1])
            time.sleep(pause)


# --- time ---------------------------------------------------------------------------------------

SLOW = {"header_timeout": 1.0, "idle_timeout": 60.0}


def test_a_head_byte_by_byte_has_its_time(batch) -> None:
    endless = HEAD + b"X-Slow: " + b"x" * 2000
    with serving(batch, **SLOW) as server, connect(server) as connection:
        sending = threading.Thread(target=drip, args=(connection, endless))
        sending.start()
        answer = read(connection)
        sending.join()
        assert answer.startswith(b"HTTP/1.1 408 ")
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"connection: close" in head.lower()
        assert json.loads(body)["error"]["code"] == "timeout"
        assert ask(server) == 200


def test_a_connection_that_says_nothing_is_closed(batch) -> None:
    with serving(batch, **SLOW) as server, connect(server) as connection:
        assert read(connection) == b""


def test_a_later_head_has_its_time_too(batch) -> None:
    with serving(batch, **SLOW) as server, connect(server) as connection:
        for _ in range(2):
            connection.sendall(HEAD + b"\r\n")
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 ")
            time.sleep(1.7)  # idle, which is no slow head
        drip(connection, HEAD + b"X-Slow: " + b"x" * 40)
        assert read(connection).startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed(batch) -> None:
    with serving(batch, header_timeout=60.0, idle_timeout=0.4) as server:
        with connect(server) as connection:
            connection.sendall(HEAD + b"\r\n")
            answer = read(connection)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.count(b"HTTP/1.1") == 1


def test_a_body_that_nobody_reads_does_not_hold_a_connection(batch) -> None:
    """What /health is sent is not read; neither its absence nor its drops prolong anything."""
    with serving(batch, header_timeout=1.0, idle_timeout=0.4) as server:
        for content in (b"", b"x" * 100):
            with connect(server) as connection:
                connection.sendall(HEAD + b"Content-Length: 1000\r\n\r\n")
                sending = threading.Thread(target=drip, args=(connection, content))
                sending.start()
                assert read(connection).startswith(b"HTTP/1.1 200 ")
                sending.join()


def test_an_answer_that_takes_long_is_not_cut(batch) -> None:
    """The times are for the client's turn; they do not run while the server has its own."""
    with (
        serving(batch, header_timeout=0.6, idle_timeout=0.2) as server,
        Held(batch) as engine,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, server)
        until(lambda: server.service.admission.taken == 1)
        time.sleep(1.4)
        engine.go()
        assert asked.result() == 200


def test_a_half_closed_connection_is_gone(batch) -> None:
    with serving(batch) as server, Held(batch), connect(server) as connection:
        body = json.dumps(BODY).encode()
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        until(lambda: server.service.admission.taken == 1)
        connection.shutdown(socket.SHUT_WR)
        assert read(connection) == b""
        until(lambda: server.service.admission.taken == 0)


def test_replies_that_are_not_read_do_not_hold_connections(batch) -> None:
    """Requests without end, of which no answer is read, on a small window."""
    with serving(batch, send_timeout=0.4, idle_timeout=0.4) as server, socket.socket() as one:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        one.connect(("127.0.0.1", server.port))
        one.settimeout(0.2)
        asked = 0
        with contextlib.suppress(OSError):
            while asked < 1000:
                one.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
                asked += 1
        until(lambda: not server.connections())


# --- number -------------------------------------------------------------------------------------


def test_silent_connections_lock_nobody_out(batch) -> None:
    with serving(batch, max_connections=4, header_timeout=60.0) as server:
        silent = [connect(server) for _ in range(20)]
        assert [ask(server) for _ in range(3)] == [200] * 3
        until(lambda: len(server.connections()) <= 4)
        for one in silent[:16]:
            assert read(one) == b""
        for one in silent:
            one.close()


@pytest.mark.parametrize("began", [HEAD, POST + b"Content-Length: 9\r\n\r\n"], ids=["head", "body"])
def test_unfinished_requests_lock_nobody_out(batch, began) -> None:
    with serving(batch, max_connections=4, header_timeout=60.0, body_timeout=60.0) as server:
        unfinished = [connect(server) for _ in range(8)]
        for one in unfinished:
            with contextlib.suppress(OSError):
                one.sendall(began)
        assert [ask(server) for _ in range(3)] == [200] * 3
        for one in unfinished:
            one.close()


def test_who_is_being_answered_keeps_the_connection(batch) -> None:
    with serving(batch, max_connections=3) as server, Held(batch) as engine:
        with ThreadPoolExecutor(3) as pool:
            asked = [pool.submit(ask, server) for _ in range(3)]
            until(lambda: server.service.admission.taken == 3)
            for _ in range(3):
                status, headers, body = server.send("GET", "/health")
                assert (status, headers["retry-after"]) == (503, "1")
                assert json.loads(body)["error"]["code"] == "unavailable"
            assert ask(server) == 503  # and reads why, though it has sent a body
            engine.go()
            assert [one.result() for one in asked] == [200] * 3
        assert ask(server) == 200


def test_refused_ones_are_bounded_too(batch) -> None:
    with serving(batch, max_connections=1) as server, Held(batch) as engine:
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(ask, server)
            until(lambda: server.service.admission.taken == 1)
            crowd = [connect(server) for _ in range(150)]
            time.sleep(0.2)
            assert len(server.connections()) <= 1 + 64 + 1
            engine.go()
            assert asked.result() == 200
        for one in crowd:
            one.close()
        until(lambda: ask(server) == 200)


# --- what is sent ---------------------------------------------------------------------------------

KEYS = KeyRing({"anna": hash_key("key of anna")})
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n"


def chunks(content: bytes, size: int) -> bytes:
    pieces = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("keys", [None, KEYS], ids=["no keys", "no key"])
def test_a_body_in_tiny_chunks_does_not_hold_the_loop(batch, keys) -> None:
    """A megabyte of them, which is a sixth of a megabyte of body, took 2.7 seconds of the loop."""
    with serving(batch, keys=keys) as server, server.pauses() as pauses:
        with connect(server) as connection:
            connection.sendall(CHUNKED + b"\r\n")
            with contextlib.suppress(OSError):
                connection.sendall(chunks(b"x" * 170_000, 1))
            assert read(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 401", b"")
        assert server.send("GET", "/health")[0] == 200
    assert max(pauses) < 1.0


@pytest.mark.parametrize(("size", "length"), [(1, 100), (64, 200_000)])
def test_other_chunked_bodies_are_read(batch, size, length) -> None:
    body = json.dumps(BODY).encode()
    body += b" " * (length - len(body))
    with serving(batch) as server, connect(server) as connection:
        connection.sendall(CHUNKED + b"Connection: close\r\n\r\n" + chunks(body, size))
        assert read(connection).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_after_an_answer_ends_the_connection(batch, caplog) -> None:
    with serving(batch, keys=KEYS) as server, connect(server) as connection:
        connection.sendall(CHUNKED + b"\r\n")
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
        connection.sendall(b"no chunk\r\n\r\n")
        assert read(connection) == b""
    assert "Traceback" not in caplog.text
    assert "Fatal error" not in caplog.text
