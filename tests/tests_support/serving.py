"""A server on loopback, in this process, and clients for it."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from typing import Any

import openai

from specplug.batching import BatchDecoder
from specplug.serving.app import create_app
from specplug.serving.server import Server, bind
from specplug.serving.service import Service
from specplug.serving.settings import ServerSettings

MODEL = "tiny"
PATIENCE = 20.0  # seconds for what should come at once


class Running:
    """A server that runs."""

    def __init__(
        self, service: Service, port: int, connections: Callable[[], Set[object]] = set
    ) -> None:
        self.service, self.port, self.connections = service, port, connections
        self.url = f"http://127.0.0.1:{port}/"

    def client(self, key: str = "none") -> openai.OpenAI:
        url = f"http://127.0.0.1:{self.port}/v1"
        return openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE)

    def send(
        self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request, JSON if the body is not bytes already."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            if body is not None and not isinstance(body, bytes):
                body = json.dumps(body).encode()
            kind = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(method, path, body, kind | (headers or {}))
            answer = connection.getresponse()
            lowered = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, lowered, answer.read()
        finally:
            connection.close()

    def metric(self, line: str) -> float:
        """The value of a line of /metrics, such as ``num_requests_running``; 0 without one."""
        for found in self.send("GET", "/metrics")[2].decode().splitlines():
            name, _, value = found.rpartition(" ")
            if name == f"specplug:{line}":
                return float(value)
        return 0.0

    @contextmanager
    def pauses(self) -> Iterator[list[float]]:
        """Seconds that the event loop, each time it was wanted, let others wait."""
        found = [0.0]

        async def watch() -> None:
            last = time.perf_counter()
            while True:
                await asyncio.sleep(0.001)
                now = time.perf_counter()
                found.append(now - last)
                last = now

        loop = self.service.worker._loop
        assert loop is not None
        watching = asyncio.run_coroutine_threadsafe(watch(), loop)
        yield found
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0.01), loop).result(PATIENCE)
        watching.cancel()

    def wait_until_free(self) -> None:
        """Until nothing runs, nothing waits, and nobody holds a place."""
        service = self.service
        until(lambda: service.decoder.idle and service.in_flight == 0)
        assert self.metric("num_requests_running") == self.metric("num_requests_waiting") == 0
        assert not service.worker._channels
        assert service.admission.taken == 0


def until(true: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Wait for something that comes by itself."""
    deadline = time.monotonic() + patience
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.005)


@contextmanager
def serving(decoder: BatchDecoder, **settings: Any) -> Iterator[Running]:
    """A server over a decoder, which stays open."""
    made = ServerSettings(**{"model_name": MODEL, "shutdown_timeout": 5.0} | settings)
    app = create_app(made, decoder)
    started = threading.Event()
    server = Server(app, started.set)
    with bind("127.0.0.1", 0, made.send_timeout) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        assert started.wait(PATIENCE)
        try:
            connections = server.server_state.connections
            yield Running(app.state.service, listener.getsockname()[1], lambda: connections)
        finally:
            server.handle_exit(15, None)
            thread.join(PATIENCE)
            assert not thread.is_alive()


class Held:
    """Holds a decoder's engine back: each call takes a leave, or a while."""

    def __init__(self, decoder: BatchDecoder, seconds: float = 0.0) -> None:
        self._engine, self._forward = decoder.target, decoder.target.forward
        self._open = threading.Event()
        self._seconds = seconds
        self.calls = 0
        self.failure: Exception | None = None
        if seconds:
            self._open.set()

    def __enter__(self) -> Held:
        self._engine.forward = self._call
        return self

    def __exit__(self, *exc: object) -> None:
        self.go()
        del self._engine.forward

    def _call(self, step: Any) -> Any:
        assert self._open.wait(PATIENCE)
        time.sleep(self._seconds)
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        return self._forward(step)

    def go(self) -> None:
        """Hold it no more."""
        self._seconds = 0.0
        self._open.set()
