"""A bystander's stream while another client attacks the server.

    .venv/bin/python benchmarks/serving_attacks.py build/w8a8.bundle

`specplug serve` runs with two keys. The bystander streams one answer after another with the first;
an attacker does its worst with the second, one attack after another, some seconds each. Reported
for each attack: the longest gap between two of the bystander's chunks, its longest wait for a first
one, how long `/health` took at most, and what the attacker was told. The exit status is 1 if a gap
reached the limit (seconds), the bystander's text was wrong, or the server ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from measuring import HERE, write_result
from serving_attackers import ATTACKS, CHAT, Attacker
from serving_client import Connection, ServerProcess
from serving_questions import Question, answered
from specplug import SpeculativeDecoder

LIMIT = 1.0  # seconds between two of the bystander's chunks
CALM = "nobody attacks"
BYSTANDER, ATTACKER = "the-bystander's-own-key", "the-attacker's-own-key"
LOST = 60.0  # seconds without a chunk, after which the bystander gives an answer up
OPTIONS = ("--max-batch", 8, "--max-waiting", 16, "--prefix-cache", 64, "--send-timeout", 5)


@dataclass(slots=True)
class Bystander:
    """A client that streams the same answer again and again, and takes the time.

    Args:
        port: of the server.
        question: asked, with its right answer.
    """

    port: int
    question: Question
    gaps: list[float] = field(default_factory=list)
    """Seconds between two chunks of an answer."""
    first: list[float] = field(default_factory=list)
    """Seconds from a request to its first chunk."""
    health: list[float] = field(default_factory=list)
    """Seconds that `/health` took."""
    wrong: list[str] = field(default_factory=list)
    """What should not have happened."""
    _waiting: tuple[list[float], float] | None = None
    """Where the chunk that is waited for will be noted, and since when it is waited for."""

    async def stream(self) -> None:
        """Ask until cancelled."""
        while True:
            connection = Connection(self.port)
            try:
                await self._ask(connection)
            except TimeoutError:
                self.wrong.append(f"no chunk came in {LOST:.0f} s")
            except (OSError, ValueError, KeyError) as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(0.1)
            finally:
                self._note()
                connection.close(reset=True)

    def _note(self) -> None:
        """The chunk that was waited for is there, or the waiting is over."""
        if self._waiting is not None:
            noted, since = self._waiting
            noted.append(time.perf_counter() - since)
        self._waiting = None

    async def _ask(self, connection: Connection) -> None:
        body = self.question.body(stream=True)
        self._waiting = (self.first, time.perf_counter())
        async with asyncio.timeout(LOST) as patience:
            await connection.send("POST", CHAT, body, headers=_key(BYSTANDER))
            status, headers = await connection.head()
            if status != 200:
                self.wrong.append(f"status {status}: {(await connection.body())[:200]!r}")
                self._waiting = None
                await asyncio.sleep(int(headers.get("retry-after", "1")))
                return
            text = ""
            async with aclosing(connection.events()) as events:
                async for event in events:
                    self._note()
                    self._waiting = (self.gaps, time.perf_counter())
                    patience.reschedule(asyncio.get_running_loop().time() + LOST)
                    if "error" in event:
                        self.wrong.append(str(event["error"]))
                    for choice in event.get("choices", ()):
                        text += choice["delta"].get("content") or ""
        self._waiting = None
        if text != self.question.texts[0]:
            self.wrong.append(f"text {text!r} instead of {self.question.texts[0]!r}")

    async def probe(self) -> None:
        """Ask for `/health` until cancelled."""
        while True:
            connection = Connection(self.port)
            began = time.perf_counter()
            try:
                async with asyncio.timeout(LOST):
                    await connection.send("GET", "/health")
                    status, _ = await connection.head()
                    await connection.body()
                if status != 200:
                    self.wrong.append(f"/health: status {status}")
            except (OSError, TimeoutError) as error:
                self.wrong.append(f"/health: {type(error).__name__}: {error}")
            finally:
                connection.close(reset=True)
                self.health.append(time.perf_counter() - began)
            await asyncio.sleep(0.1)

    def report(self) -> dict[str, Any]:
        """Milliseconds, and what was wrong."""
        gaps = sorted(self.gaps) or [0.0]
        return {
            "chunks": len(self.gaps),
            "median_gap": 1e3 * gaps[len(gaps) // 2],
            "worst_gap": 1e3 * gaps[-1],
            "worst_first": 1e3 * max(self.first, default=0.0),
            "worst_health": 1e3 * max(self.health, default=0.0),
            "wrong": self.wrong,
        }


def _key(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


async def attacked(
    server: ServerProcess, name: str, question: Question, *, seconds: float, seed: int
) -> dict[str, Any]:
    """One attack, and what the bystander saw of it."""
    bystander = Bystander(server.port, question)
    attacker = Attacker(server.port, ATTACKER, seed)
    watching = [asyncio.create_task(bystander.stream()), asyncio.create_task(bystander.probe())]
    began = time.monotonic()
    while not bystander.gaps and time.monotonic() < began + LOST:
        await asyncio.sleep(0.01)  # its stream is under way when the attack begins
    attack = asyncio.create_task(attacker.stop.wait() if name == CALM else ATTACKS[name](attacker))
    before = server.vitals()["megabytes"]
    most, end = before, time.monotonic() + seconds
    while time.monotonic() < end and server.process.poll() is None:
        await asyncio.sleep(0.1)
        most = max(most, server.vitals()["megabytes"])
    attacker.stop.set()
    await attack
    for task in watching:
        task.cancel()
    await asyncio.gather(*watching, return_exceptions=True)
    found = bystander.report()
    if server.process.poll() is not None:
        found["wrong"].append(f"the server ended with status {server.process.returncode}")
    grown = most - before
    await _settled(server)
    return {"attack": name, **found, "megabytes": grown, "told": dict(attacker.statuses)}


async def _settled(server: ServerProcess) -> None:
    """Wait until nothing of an attack is left to do."""
    end = time.monotonic() + LOST
    while time.monotonic() < end and server.process.poll() is None:
        with contextlib.suppress(OSError, TimeoutError, KeyError):
            async with asyncio.timeout(LOST):
                if (await server.metrics())["requests_in_flight"] <= 1:
                    return
        await asyncio.sleep(0.2)


async def attacks(options: argparse.Namespace, keys: Path) -> dict[str, Any]:
    """All attacks that are asked for, one after another."""
    with SpeculativeDecoder.from_bundle(options.bundle, drafter="none") as decoder:
        question = answered(decoder, Question(chat=True, prompt=_PROMPT, max_tokens=options.tokens))
    results = []
    with ServerProcess(options.bundle, "--api-key-file", keys, *OPTIONS) as server:
        await server.wait_until_ready()
        for name in (CALM, *options.attacks):
            result = await attacked(
                server, name, question, seconds=options.seconds, seed=options.seed
            )
            results.append(result)
            print(_line(result), flush=True)
            if server.process.poll() is not None:
                break
    violations = [
        f"{one['attack']}: {what}"
        for one in results
        for what in [
            *one["wrong"][:3],
            *([f"a gap of {one['worst_gap']:.0f} ms"]
              if one["worst_gap"] >= 1e3 * options.limit else []),
            *(["no chunk came"] if not one["chunks"] else []),
        ]
    ]  # fmt: skip
    return {
        "bundle": options.bundle.stem,
        "seconds": options.seconds,
        "limit": options.limit,
        "attacks": results,
        "violations": violations,
    }


_PROMPT = "Tell me about the sea, the ships on it, and those who sail them."


def _line(result: dict[str, Any]) -> str:
    told = ", ".join(f"{number} {status}" for status, number in result["told"].items())
    return (
        f"{result['attack']:24} worst gap {result['worst_gap']:6.0f} ms, first chunk "
        f"{result['worst_first']:6.0f} ms, health {result['worst_health']:6.0f} ms, "
        f"{result['megabytes']:+5.0f} MB, {len(result['wrong'])} wrong; told {told or 'nothing'}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = HERE.parent / "build" / "w8a8.bundle"
    parser.add_argument("bundle", nargs="?", type=Path, default=default)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each attack")
    parser.add_argument("--tokens", type=int, default=96, help="of the bystander's answer")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds between chunks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=[*ATTACKS])
    parser.add_argument("--name", default="serving_attacks")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        keys = Path(folder) / "keys"
        owners = {"bystander": BYSTANDER, "attacker": ATTACKER}
        keys.write_text("".join(f"{name}:{sha256(key.encode()).hexdigest()}\n"
                                for name, key in owners.items()))  # fmt: skip
        os.chmod(keys, 0o600)
        result = asyncio.run(attacks(options, keys))
    print(f"{len(result['violations'])} violations")
    for violation in result["violations"]:
        print(f"  {violation[:300]}")
    print(write_result(options.name, result))
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
