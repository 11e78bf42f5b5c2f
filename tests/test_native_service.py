"""The example service in C++ under nonsense, slow clients, and more of them than it takes."""

from __future__ import annotations

import gzip
import http.client
import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests_support import native as support

GOOD: dict[str, Any] = {
    "prompt": "Hello",
    "max_tokens": 3,
    "temperature": 0.5,
    "top_p": 0.9,
    "seed": 1,
    "stop": ["x"],
    "tenant": "a",
}
DEEP = 100_000


@contextmanager
def serving(bundle: Path, program: str) -> Iterator[int]:
    """Its port; it must be alive at the end, and a sanitizer must have found nothing."""
    try:
        support.build(program)
    except support.MissingToolError as error:
        pytest.skip(f"no {program} build: {error}")
    inside = {"release": "examples/service", "address": "address/tests/service_inside"}[program]
    if not (support.BUILD / inside).exists():
        pytest.skip("cpp-httplib was not found")
    with subprocess.Popen(
        [support.BUILD / inside, bundle, "0"], stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout
        try:
            yield int(running.stdout.readline().split()[-1])
            assert running.poll() is None
        finally:
            running.kill()


@pytest.fixture(scope="module", params=["release", pytest.param("address", marks=pytest.mark.slow)])
def port(request: pytest.FixtureRequest, tiny_bundles: dict[str, Path]) -> Iterator[int]:
    with serving(tiny_bundles["fp32"], request.param) as port:
        yield port
        assert ask(port, json.dumps(GOOD).encode())[0] == 200


def ask(
    port: int, body: bytes, path: str = "/generate", method: str = "POST", **headers: str
) -> tuple[int, list[dict[str, Any]]]:
    """Status and lines of an answer; status 0: the connection was closed without one."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, named)
        reply = connection.getresponse()
        content = reply.read()
    except (ConnectionError, http.client.HTTPException):
        return 0, []
    finally:
        connection.close()
    lines = [json.loads(line) for line in content.splitlines() if line.startswith(b"{")]
    return reply.status, lines


def test_a_good_request(port: int) -> None:
    status, (*runs, figures) = ask(port, json.dumps(GOOD).encode())
    assert (status, figures["new_tokens"]) == (200, 3)
    assert sum(run["tokens"] for run in runs) == 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"prompt": None}, "need JSON with a prompt"),
        ({"prompt": ["a"]}, "need JSON with a prompt"),
        ({"max_tokens": 4097}, "max_tokens: at most 4096"),
        ({"max_tokens": "a"}, "type must be number"),
        ({"temperature": []}, "type must be number"),
        ({"stop": "x"}, "stop: at most 16 strings"),
        ({"stop": ["x"] * 17}, "stop: at most 16 strings"),
        ({"stop": [1]}, "type must be string"),
        ({"stop": ["x" * 1001]}, "stop: at most 1000 bytes each"),
        ({"tenant": "x" * 1001}, "tenant: at most 1000 bytes"),
        ({"tenant": {}}, "type must be string"),
        ({"more": [[[[[[[[[[1]]]]]]]]]]}, "nested too deeply"),
    ],
)
def test_nonsense_is_refused(port: int, changes: dict[str, Any], said: str) -> None:
    status, (line,) = ask(port, json.dumps(GOOD | changes).encode())
    assert (status, said in line["error"]) == (400, True), line


def nested(opening: bytes, closing: bytes) -> list[bytes]:
    deep = opening * DEEP + b"1" + closing * DEEP
    return [
        deep,
        opening * DEEP,
        b'{"prompt": "a", "more": ' + deep + b"}",
        b'{"prompt": "a", "stop": ' + deep + b"}",
        b'{"prompt": ' + deep + b"}",
    ]


@pytest.mark.parametrize("kind", range(10))
def test_what_is_nested_a_hundred_thousand_times(port: int, kind: int) -> None:
    bodies = [*nested(b"[", b"]"), *nested(b'{"a":', b"}")]
    status, (line,) = ask(port, bodies[kind])
    assert status == 400
    assert "error" in line


def is_closed(port: int, begin: bytes, rest: Sequence[bytes], pause: float = 0.0) -> bool:
    """Whether a connection is closed before all of a request was sent."""
    with socket.create_connection(("127.0.0.1", port), 20) as client:
        try:
            client.sendall(begin)
            for piece in rest:
                time.sleep(pause)
                client.sendall(piece)
        except TimeoutError:
            return False
        except OSError:
            return True
    return False


def test_bodies_are_bounded(port: int) -> None:
    """Told, packed, or in chunks without an end."""
    whole = json.dumps({"prompt": "a" * (1 << 21)}).encode()
    assert ask(port, whole)[0] in (0, 413)
    assert ask(port, gzip.compress(b"a" * (1 << 27)), Content_Encoding="gzip")[0] in (0, 413)
    assert ask(port, b"--x", Content_Type="multipart/form-data; boundary=x")[0] in (0, 400, 415)
    good = gzip.compress(json.dumps(GOOD).encode())
    assert ask(port, good, Content_Encoding="gzip")[0] == 200
    begin = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert is_closed(port, begin, [b"1000\r\n" + b"a" * 4096 + b"\r\n"] * (1 << 12))


def test_headers_are_bounded(port: int) -> None:
    begin = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    assert is_closed(port, begin, [b"A: " + b"a" * 1000 + b"\r\n"] * (1 << 14))


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "example.org"},
        {"Host": "localhost.example.org"},
        {"Host": ""},
        {"Host": "127.0.0.1:1@example.org"},
        {"Origin": "https://example.org"},
        {"Origin": "http://localhost.example.org"},
        {"Origin": "null"},
    ],
)
def test_other_sites_are_refused(port: int, headers: dict[str, str]) -> None:
    assert ask(port, json.dumps(GOOD).encode(), **headers)[0] in (400, 403)
    assert ask(port, b"", "/health", "GET", **headers)[0] in (400, 403)
    good = {name: f"{'http://' * (name == 'Origin')}localhost:{port}" for name in headers}
    assert ask(port, b"", "/health", "GET", **good)[0] == 200


def test_mutations(port: int) -> None:
    """Anything at all is answered or refused."""
    chance = random.Random(24)
    whole = json.dumps(GOOD).encode()
    pieces = [b"[", b"{", b'"', b"null", b"1e999", b"-1", b"\xff", b"\\ud800", b"\0", b"9" * 400]
    for _ in range(200):
        body = bytearray(whole)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(body) + 1)
            until = at + chance.choice([0, 0, 1, 5])
            body[at:until] = chance.choice(pieces) * chance.choice([1, 1, 1, 50])
        status, lines = ask(port, bytes(body))
        assert status in (200, 400), bytes(body)
        assert lines


@pytest.mark.slow
def test_slow_clients_end(tiny_bundle: Path) -> None:
    """Those that send nothing, or a byte now and then, hold their places for ten seconds."""
    with serving(tiny_bundle, "release") as port, ExitStack() as open_ones:

        def connect() -> socket.socket:
            return open_ones.enter_context(socket.create_connection(("127.0.0.1", port), 60))

        begin = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 999\r\n\r\n"
        for client in [connect() for _ in range(40)]:
            client.sendall(begin)
        assert ask(port, b"", "/health", "GET")[0] == 200  # there are places
        began = time.monotonic()
        assert is_closed(port, begin, [b" "] * 60, pause=0.5)
        for _ in range(100):
            connect()
        assert ask(port, b"", "/health", "GET")[0] == 200
        assert time.monotonic() - began < 60
