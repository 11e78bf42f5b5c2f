"""An engine that never comes back: the server says so, refuses, and ends all the same."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import uvicorn

from specplug.batching import BatchDecoder
from specplug.serving import server as server_module
from specplug.serving import service
from specplug.serving.app import create_app
from specplug.serving.server import HUNG
from specplug.serving.settings import ServerSettings
from tests_support.serving import PATIENCE, Held, Running, serving, until

BODY = {"prompt": "x", "max_tokens": 4, "temperature": 0}


@pytest.fixture
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2, draft_tokens=4) as decoder:
        yield decoder


def statuses(server: Running) -> tuple[int, int, int]:
    """Of /health, /ready and a request."""
    asked = server.send("POST", "/v1/completions", BODY)
    if asked[0] != 200:
        assert json.loads(asked[2])["error"]["code"] == "unavailable"
    return server.send("GET", "/health")[0], server.send("GET", "/ready")[0], asked[0]


def test_a_hung_engine_is_noticed_and_may_come_back(batch) -> None:
    with serving(batch, step_timeout=0.3) as server, ThreadPoolExecutor(1) as pool:
        until(lambda: server.service.ready)
        assert statuses(server) == (200, 200, 200)
        with Held(batch) as engine:
            asked = pool.submit(server.send, "POST", "/v1/completions", BODY)
            until(lambda: server.send("GET", "/health")[0] == 503)
            assert statuses(server) == (503, 503, 503)
            body = server.send("GET", "/health")[2]
            assert "has not answered for 0.3 seconds" in json.loads(body)["error"]["message"]
            engine.go()
            assert asked.result()[0] == 200
            until(lambda: server.send("GET", "/health")[0] == 200)
            assert statuses(server) == (200, 200, 200)


def test_a_slow_engine_is_no_hung_one(batch) -> None:
    """Each step takes less than the limit, and all of them more."""
    with serving(batch, step_timeout=5.0) as server, Held(batch, 0.02):
        assert statuses(server) == (200, 200, 200)


def test_the_lifespan_ends_in_any_server(batch, monkeypatch) -> None:
    monkeypatch.setattr(service, "LAST_STEP", 0.2)
    app = create_app(ServerSettings(shutdown_timeout=0.3), batch)

    async def live() -> None:
        async with app.router.lifespan_context(app):
            while not app.state.service.ready:
                await asyncio.sleep(0.01)
            app.state.service.worker.submit([1], max_tokens=4)
            while not app.state.service.worker.step_seconds:
                await asyncio.sleep(0.01)

    with Held(batch) as engine:
        began = time.monotonic()
        asyncio.run(live())
        assert time.monotonic() - began < PATIENCE / 2
        assert app.state.service.hung
        engine.go()
        until(lambda: not app.state.service.worker.alive)


def test_plain_uvicorn_ends_under_a_running_request(batch, monkeypatch) -> None:
    monkeypatch.setattr(service, "LAST_STEP", 0.2)
    app = create_app(ServerSettings(shutdown_timeout=0.3), batch)
    config = uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started and app.state.service.ready)
    running = Running(app.state.service, server.servers[0].sockets[0].getsockname()[1])
    with Held(batch) as engine, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.send, "POST", "/v1/completions", BODY)
        until(lambda: app.state.service.worker.step_seconds > 0)
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()
        assert app.state.service.hung
        assert asked.exception() is not None or asked.result()[0] >= 500
        engine.go()
        until(lambda: not app.state.service.worker.alive)


def test_whatever_else_hangs_the_process_ends(batch, monkeypatch) -> None:
    """Its own event loop, say: the watch does not need it."""
    ended: list[str] = []
    monkeypatch.setattr(server_module, "_end", ended.append)
    for name in ("_LAST_WRITES", "LAST_STEP", "_MARGIN"):
        monkeypatch.setattr(server_module, name, 0.1)
    app = create_app(ServerSettings(shutdown_timeout=0.1), batch)
    server = server_module.Server(app, owns_process=True)
    watch = threading.Thread(target=server._watch)
    watch.start()
    watch.join(0.6)
    assert watch.is_alive()  # no signal, no end
    server.handle_exit(signal.SIGTERM, None)
    watch.join(PATIENCE)
    assert ended == ["something"]


HANGS = """
import pathlib, sys, time
from specplug.batching import BatchDecoder
from specplug.cli import main

opened, marker = BatchDecoder.from_bundle.__func__, pathlib.Path(sys.argv.pop(1))

def from_bundle(cls, *arguments, **options):
    decoder = opened(cls, *arguments, **options)
    forward = decoder.target.forward
    def hang(step):
        while marker.exists():
            time.sleep(0.05)
        return forward(step)
    decoder.target.forward = hang
    return decoder

BatchDecoder.from_bundle = classmethod(from_bundle)
main()
"""


@pytest.mark.parametrize("stays", [True, False], ids=["client stays", "client gone"])
def test_sigterm_ends_a_process_whose_engine_hangs(tiny_bundle: Path, tmp_path, stays) -> None:
    """With a request that still waits for the engine, and with one whose client has gone."""
    marker = tmp_path / "hang"
    line = [sys.executable, "-c", HANGS, str(marker), "serve", str(tiny_bundle), "--port", "0"]
    line += ["--draft-tokens", "2", "--step-timeout", "0.5", "--shutdown-timeout", "1"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout
            server = Running(None, int(process.stdout.readline().rpartition(":")[2]))
            until(lambda: server.send("GET", "/ready")[0] == 200)
            marker.touch()
            client = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
            with client, client.makefile("rb") as answer:
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                head += "Content-Type: application/json\r\n"
                body = json.dumps(BODY)
                client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
                until(lambda: server.send("GET", "/health")[0] == 503)
                if not stays:
                    client.shutdown(socket.SHUT_RDWR)
                process.send_signal(signal.SIGTERM)
                began = time.monotonic()
                _, log = process.communicate(timeout=60)
                assert time.monotonic() - began < 1 + 15 + 5
                assert answer.readline() == (
                    b"HTTP/1.1 503 Service Unavailable\r\n" if stays else b""
                )
        finally:
            process.kill()
    assert process.returncode == HUNG, log
    lines = [json.loads(one) for one in log.splitlines() if one.startswith("{")]
    said = [one["message"] for one in lines if one["level"] == "error" and "message" in one]
    assert any("is left behind" in one for one in said)
    assert f"stopping: the engine did not end in time: exit code {HUNG}" in said
