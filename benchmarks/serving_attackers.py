"""Attacks on a server that others use: what one client can send, with a key or without one.

Each attack is a function that goes on until it is told to stop. Requests go to loopback alone.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from serving_client import HOST, Connection

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
SENDERS = 8  # connections that send bodies, one after another
SLOW = 200  # connections that are held open
PATIENCE = 30.0  # seconds to wait for an answer, before the client hangs up


@dataclass(slots=True)
class Attacker:
    """One client with a key.

    Args:
        port: of the server.
        key: of the attacker.
        seed: of what is random.
    """

    port: int
    key: str
    seed: int
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the attack is over."""
    statuses: Counter[str] = field(default_factory=Counter)
    """Of the answers, and of connections that ended without one."""

    async def post(self, path: str, body: bytes, **sending: Any) -> None:
        """Send a request on a new connection and note its status."""
        headers = {"Authorization": f"Bearer {self.key}"} | sending.pop("headers", {})
        connection = Connection(self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                await connection.send("POST", path, body, headers=headers, **sending)
                status, _ = await connection.head()
                async for _ in connection.pieces():
                    pass
            self.statuses[str(status)] += 1
        except TimeoutError:
            self.statuses["no answer in time"] += 1
        except OSError:
            self.statuses["connection broken"] += 1
        finally:
            connection.close(reset=True)

    async def repeat(self, path: str, bodies: Sequence[bytes], senders: int = SENDERS) -> None:
        """Send bodies in turn over some connections until the attack is over."""

        async def send(number: int) -> None:
            while not self.stop.is_set():
                await self.post(path, bodies[number % len(bodies)])
                number += senders

        await self._until_stopped([send(number) for number in range(senders)])

    async def hold(self, talk: Callable[[socket.socket, int], Awaitable[None]]) -> None:
        """Keep many raw connections and let each talk until the server breaks it off."""

        async def keep(number: int) -> None:
            loop = asyncio.get_running_loop()
            while not self.stop.is_set():
                raw = socket.socket()
                raw.setblocking(False)
                try:
                    await loop.sock_connect(raw, (HOST, self.port))
                    await talk(raw, number)
                    self.statuses["held on"] += 1
                except OSError:
                    self.statuses["connection broken"] += 1
                finally:
                    raw.close()
                await asyncio.sleep(0.2)

        await self._until_stopped([keep(number) for number in range(SLOW)])

    async def _until_stopped(self, parts: Sequence[Any]) -> None:
        tasks = [asyncio.create_task(part) for part in parts]
        await self.stop.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


Attack = Callable[[Attacker], Awaitable[None]]


def _chat(content: str = "Hello.", **fields: Any) -> bytes:
    asked = {"messages": [{"role": "user", "content": content}], "max_tokens": 64}
    return json.dumps(asked | fields, separators=(",", ":"), ensure_ascii=False).encode()


def _filled(start: bytes, piece: bytes, end: bytes, size: int = (1 << 20) - 64) -> bytes:
    """A body of just under the server's limit, made of one piece again and again."""
    times = (size - len(start) - len(end)) // (len(piece) + 1)
    return start + b",".join([piece] * times) + end


def _bodies(path: str, *bodies: bytes, senders: int = SENDERS) -> Attack:
    """An attack that sends these bodies."""

    async def attack(attacker: Attacker) -> None:
        await attacker.repeat(path, bodies, senders)

    return attack


def _wide_schema(properties: int) -> dict[str, Any]:
    names = [f"property_{number}" for number in range(properties)]
    return {
        "type": "object",
        "properties": {name: {"type": "string", "maxLength": 20} for name in names},
        "required": names,
    }


def _schema(schema: dict[str, Any], **fields: Any) -> bytes:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    return _chat(response_format=wanted, **fields)


_AMBIGUOUS = "start: a\na: " + " | ".join(["a a", '"x"', *(f'"x" {"a " * n}' for n in range(1, 8))])


async def _slow_headers(attacker: Attacker) -> None:
    async def talk(raw: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(raw, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-A: ")
        while not attacker.stop.is_set():
            await loop.sock_sendall(raw, b"a")
            await asyncio.sleep(1)

    await attacker.hold(talk)


async def _idle_connections(attacker: Attacker) -> None:
    async def talk(raw: socket.socket, number: int) -> None:
        await asyncio.get_running_loop().sock_recv(raw, 1)

    await attacker.hold(talk)


async def _slow_bodies(attacker: Attacker) -> None:
    async def talk(raw: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.key}\r\n"
            "Content-Type: application/json\r\nContent-Length: 1000000\r\n\r\n{"
        )
        await loop.sock_sendall(raw, head.encode())
        while not attacker.stop.is_set():
            await loop.sock_sendall(raw, b" ")
            await asyncio.sleep(1)

    await attacker.hold(talk)


async def _small_chunks(attacker: Attacker) -> None:
    async def talk(raw: socket.socket, number: int) -> None:
        loop = asyncio.get_running_loop()
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.key}\r\n"
            "Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        await loop.sock_sendall(raw, head.encode())
        while not attacker.stop.is_set():
            await loop.sock_sendall(raw, b"1\r\n \r\n" * 1000)

    await attacker.hold(talk)


async def _stalled_readers(attacker: Attacker) -> None:
    body = _chat(
        "Tell me a long story.", stream=True, n=4, logprobs=True, top_logprobs=20, max_tokens=400
    )
    head = (
        f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {attacker.key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    async def talk(raw: socket.socket, number: int) -> None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        await asyncio.get_running_loop().sock_sendall(raw, head.encode() + body)
        await asyncio.sleep(PATIENCE)

    await attacker.hold(talk)


async def _hang_up_early(attacker: Attacker) -> None:
    """Requests that are costly to prepare, and a client that does not wait."""
    bodies = [_schema(_wide_schema(1000)), _chat("many words " * 8000)]

    async def send(number: int) -> None:
        random = Random(f"{attacker.seed}.{number}")
        while not attacker.stop.is_set():
            connection = Connection(attacker.port)
            headers = {"Authorization": f"Bearer {attacker.key}"}
            try:
                await connection.send("POST", CHAT, bodies[number % 2], headers=headers)
                await asyncio.sleep(random.uniform(0, 0.2))
                attacker.statuses["hung up"] += 1
            except OSError:
                attacker.statuses["connection broken"] += 1
            finally:
                connection.close(reset=True)

    await attacker._until_stopped([send(number) for number in range(SENDERS)])


async def _wrong_keys(attacker: Attacker) -> None:
    wrong = Attacker(attacker.port, "x" * 4000, attacker.seed, attacker.stop, attacker.statuses)
    await wrong.repeat(CHAT, [_filled(b'{"messages":[', b"{}", b"]}")])


ATTACKS: dict[str, Attack] = {
    # --- bodies that cost much to read -------------------------------------------------------
    "empty messages": _bodies(CHAT, _filled(b'{"messages":[', b"{}", b"]}")),
    "empty parts": _bodies(
        CHAT, _filled(b'{"messages":[{"role":"user","content":[', b"{}", b"]}]}")
    ),
    "short messages": _bodies(
        CHAT, _filled(b'{"messages":[', b'{"role":"user","content":"a"}', b"]}")
    ),
    "unknown fields": _bodies(
        CHAT,
        b"{" + b",".join(b'"f%d":0' % number for number in range(80_000)) + b"}",
    ),
    "ignored values": _bodies(
        CHAT, _filled(b'{"messages":[{"role":"user","content":"a"}],"metadata":[', b"[0]", b"]}")
    ),
    "nested arrays": _bodies(CHAT, b'{"messages":' + b"[" * 500_000 + b"]" * 500_000 + b"}"),
    "long numbers": _bodies(
        CHAT, _filled(b'{"seed":1', b"1" * 4000, b"}").replace(b",", b""), _chat(seed=10**4000)
    ),
    "lists of prompts": _bodies(COMPLETIONS, _filled(b'{"prompt":[', b"[1]", b"]}")),
    "token ids": _bodies(COMPLETIONS, _filled(b'{"prompt":[', b"1", b"]}")),
    # --- requests that cost much to prepare --------------------------------------------------
    "wide schemas": _bodies(CHAT, _schema(_wide_schema(6000), n=8), _schema(_wide_schema(1000))),
    "ambiguous grammars": _bodies(
        CHAT,
        _chat(grammar=_AMBIGUOUS, n=4),
        _chat(regex="((a|aa|aaa)*(b|a))*" * 40 + "c"),
        _chat(regex="[ab]*a[ab]{2000}"),
    ),
    "predictions": _bodies(
        CHAT, _chat(prediction={"type": "content", "content": "a b c d " * 120_000}, n=8)
    ),
    "long texts": _bodies(
        CHAT, _chat("x" * 1_000_000), _chat("many words " * 90_000), _chat("ß" * 500_000)
    ),
    "many stops": _bodies(
        CHAT, _chat(stop=["a" * 10_000 + chr(97 + number % 26) for number in range(64)], n=8)
    ),
    "biased tokens": _bodies(
        CHAT,
        _chat(logit_bias={str(number): -1 for number in range(49_152)}, n=8),
        _chat(logit_bias={str(number): -1 for number in range(1024)}, n=8),
        _chat(allowed_token_ids=[*range(49_152)], n=8),
        _chat(bad_words=[f"word{number}" for number in range(1024)], n=8),
    ),
    "long log-probabilities": _bodies(
        COMPLETIONS,
        json.dumps(
            {
                "prompt": "word " * 4000,
                "echo": True,
                "logprobs": 5,
                "prompt_logprobs": 20,
                "max_tokens": 64,
                "n": 8,
            }
        ).encode(),
    ),
    "early hang-ups": _hang_up_early,
    # --- more requests than there is room for ------------------------------------------------
    "long prompts": _bodies(CHAT, _chat("many words " * 3500), senders=32),
    "many answers": _bodies(CHAT, _chat("Tell me a story.", n=16, max_tokens=256), senders=64),
    # --- connections --------------------------------------------------------------------------
    "slow headers": _slow_headers,
    "idle connections": _idle_connections,
    "slow bodies": _slow_bodies,
    "small chunks": _small_chunks,
    "stalled readers": _stalled_readers,
    "wrong keys": _wrong_keys,
}
"""By name."""
