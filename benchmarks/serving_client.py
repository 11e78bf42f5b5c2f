"""What the load scripts share: a server in a process of its own, and connections to it.

A connection is a socket and h11 (which comes with uvicorn), not a client library: these scripts
send bodies in pieces, stop reading, hang up at a chosen byte, and want small buffers.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import h11

HOST = "127.0.0.1"
STARTING = 120.0  # seconds for a server to be ready
_SMALL = 2048  # bytes


@dataclass(slots=True)
class Answer:
    """What came for one request, whole, or as far as a stream went."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    texts: dict[int, str] = field(default_factory=dict)
    """By choice."""
    reasons: dict[int, str] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None

    @property
    def streamed(self) -> bool:
        """Whether its body is a stream of events."""
        return self.headers["content-type"].startswith("text/event-stream")

    def note(self, body: Mapping[str, Any]) -> int:
        """Add a body or one chunk of a stream; returns how many choices it speaks of."""
        self.error = body.get("error", self.error)
        self.usage = body.get("usage") or self.usage
        if "id" in body:
            self.ids.add(body["id"])
        for choice in body.get("choices", ()):
            index = choice["index"]
            message = choice.get("message") or choice.get("delta") or choice
            text = message.get("content") or message.get("text") or ""
            self.texts[index] = self.texts.get(index, "") + text
            if choice["finish_reason"] is not None:
                self.reasons[index] = choice["finish_reason"]
        return len(body.get("choices", ()))


class Connection:
    """One connection, for one request after another; opened when it is needed.

    Whatever the server breaks off is a :class:`ConnectionError`.

    Args:
        port: of the server, on loopback.
        small: give it small buffers, so that not reading is soon felt.
    """

    def __init__(self, port: int, *, small: bool = False) -> None:
        self._port = port
        self._small = small
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._http = h11.Connection(h11.CLIENT)

    async def send(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        kind: str = "application/json",
        headers: Mapping[str, str] | None = None,
        pieces: int = 1,
        pause: float = 0.0,
        share: float = 1.0,
    ) -> None:
        """Send a request, its body in pieces with a pause (seconds) after each.

        Of a ``share`` under 1 only so much of the body is sent.
        """
        writer = await self._open()
        fields = {"Host": HOST, "Content-Length": str(len(body))} | dict(headers or {})
        if body:
            fields["Content-Type"] = kind
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        writer.write(self._http.send(request))
        most = round(len(body) * share)
        step = max(1, -(-most // pieces))
        for start in range(0, most, step):
            writer.write(self._http.send(h11.Data(data=body[start : min(start + step, most)])))
            await writer.drain()
            if pause:
                await asyncio.sleep(pause)
        if share == 1.0:
            writer.write(self._http.send(h11.EndOfMessage()))
        await writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the answer."""
        event = await self._event()
        assert isinstance(event, h11.Response)
        return event.status_code, {
            name.decode().lower(): value.decode() for name, value in event.headers
        }

    async def pieces(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        while not isinstance(event := await self._event(), h11.EndOfMessage):
            assert isinstance(event, h11.Data)
            yield bytes(event.data)

    async def body(self) -> bytes:
        """All of it."""
        return b"".join([piece async for piece in self.pieces()])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The server-sent events of a stream, up to ``[DONE]``, which must be the last."""
        rest, done = b"", False
        async for piece in self.pieces():
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                if event.startswith(b":") and not done:
                    continue  # a comment, which keeps a silent stream open
                if done or not event.startswith(b"data: "):
                    raise ValueError(f"no event of a stream: {event[:80]!r}")
                done = event == b"data: [DONE]"
                if not done:
                    yield json.loads(event.removeprefix(b"data: "))
        if rest or not done:
            raise ConnectionError("the stream ended before it was done")

    async def answer(self) -> Answer:
        """The whole answer, streamed or not."""
        return await self.rest(Answer(*await self.head()))

    async def rest(self, answer: Answer) -> Answer:
        """Complete an answer of which only the head was read."""
        if answer.streamed:
            async for event in self.events():
                answer.note(event)
        else:
            answer.note(json.loads(await self.body()))
        return answer

    def close(self, *, reset: bool = False) -> None:
        """Hang up, orderly or not."""
        if self._writer is not None:
            self._writer.transport.abort() if reset else self._writer.close()
        self._reader = self._writer = None

    async def _open(self) -> asyncio.StreamWriter:
        if self._writer is not None and self._reader is not None:
            done = self._http.our_state is self._http.their_state is h11.DONE
            if done and not self._reader.at_eof() and not self._writer.is_closing():
                self._http.start_next_cycle()
                return self._writer
            self.close()
        made = socket.socket()
        made.setblocking(False)
        limit = 1 << 16
        if self._small:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            limit = _SMALL
        try:
            await asyncio.get_running_loop().sock_connect(made, (HOST, self._port))
        except BaseException:
            made.close()
            raise
        self._reader, self._writer = await asyncio.open_connection(sock=made, limit=limit)
        self._http = h11.Connection(h11.CLIENT)
        return self._writer

    async def _event(self) -> h11.Event:
        assert self._reader is not None
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(1 << 16))
        except h11.RemoteProtocolError as error:
            raise ConnectionError(str(error)) from None
        if isinstance(event, h11.ConnectionClosed):
            raise ConnectionError("the server hung up without an answer")
        assert not isinstance(event, type)
        return event


class ServerProcess:
    """``specplug serve`` as a user starts it, on a free port of loopback.

    Args:
        bundle: served.
        options: more of its command line.
        command: what is run instead of ``specplug serve``, and takes its command line.
    """

    def __init__(
        self,
        bundle: Path,
        *options: object,
        command: Sequence[str] = (sys.executable, "-m", "specplug", "serve"),
    ) -> None:
        self._command = [*command, str(bundle), "--port", "0", *map(str, options)]
        self._lines: list[dict[str, Any]] = []
        self._rest = b""

    def __enter__(self) -> Self:
        with tempfile.NamedTemporaryFile(suffix=".log", delete=False) as log:
            self._log = open(log.name, "rb")
            self.process = subprocess.Popen(
                self._command, stdout=subprocess.PIPE, stderr=log, env=os.environ
            )
        os.unlink(log.name)
        assert self.process.stdout is not None
        address = self.process.stdout.readline().decode().strip()
        if not address:
            self.process.wait()
            shown = self._log.read().decode(errors="replace")
            self.__exit__()
            raise RuntimeError(f"specplug serve did not start:\n{shown}")
        self.port = int(address.rpartition(":")[2])
        return self

    def __exit__(self, *exc: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()

    async def get(self, path: str) -> tuple[int, bytes]:
        """Status and body, over a connection of its own."""
        connection = Connection(self.port)
        try:
            await connection.send("GET", path)
            status, _ = await connection.head()
            return status, await connection.body()
        finally:
            connection.close()

    async def wait_until_ready(self) -> None:
        """Until it takes requests."""
        deadline = time.monotonic() + STARTING
        while (await self.get("/ready"))[0] != 200:
            if time.monotonic() > deadline:
                raise RuntimeError(f"specplug serve was not ready after {STARTING:.0f} s")
            await asyncio.sleep(0.1)

    async def metrics(self) -> dict[str, float]:
        """The lines of ``/metrics``, without the prefix."""
        found = {}
        for line in (await self.get("/metrics"))[1].decode().splitlines():
            if line.startswith("specplug:"):
                name, _, value = line.removeprefix("specplug:").rpartition(" ")
                found[name] = float(value)
        return found

    def vitals(self) -> dict[str, float]:
        """Resident megabytes, threads and open files of the process."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return {
            "megabytes": int(fields["VmRSS"].split()[0]) / 1024,
            "threads": int(fields["Threads"]),
            "files": len(os.listdir(f"/proc/{self.process.pid}/fd")),
        }

    def log(self) -> list[dict[str, Any]]:
        """The lines written so far; one that is no JSON is an event of its own, ``"raw"``."""
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        self._lines += map(_line, lines)
        return self._lines

    def requests(self) -> Iterator[dict[str, Any]]:
        """Those of the log."""
        return (line for line in self.log() if line.get("event") == "request")

    def terminate(self) -> None:
        """Ask it to end."""
        self.process.send_signal(signal.SIGTERM)

    async def ended(self, seconds: float) -> int | None:
        """Its exit status, once it has ended; None: it has not in so many seconds."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        return self.process.returncode


def _line(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    return {"event": "raw", "message": line.decode(errors="replace")}
