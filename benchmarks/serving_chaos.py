"""Clients of every bad habit at once, against `specplug serve`: no answer may be wrong or lost.

    .venv/bin/python benchmarks/serving_chaos.py build/w8a8.bundle

Requests come over some dozens of connections: streamed and whole, greedy and sampled, chat and
completions, and among them clients that hang up, bodies that are wrong, readers that stall and
senders that are slow, mixed by a seed. Every answer is compared with that of plain decoding alone.
In the end nothing may be held any more, memory must have stayed flat, and SIGTERM under load must
drop nothing. The exit status is 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

from measuring import HERE, write_result
from serving_client import Connection, ServerProcess
from serving_habits import PATIENCE, Clients, planned
from serving_questions import Question, bad_requests, make_long, make_pool

PLACES = 24  # answers that the server takes: 8 in the batch, 16 waiting
MOST_BYTES = 1 << 17
SEND_TIMEOUT = 2  # seconds
SETTLING = 30.0  # seconds for everything to be free again, once all have gone
POOLED = 5  # threads that prepare prompts and read long bodies, which the first requests start
PIPES = 4  # of two processes in which grammars are tried out, which the first grammars start
_HEARD = 0.2  # seconds for a signal to arrive
FLAT = 0.05  # of the memory at a quarter of the run, by which it may grow: caches in use come and
FLAT_MEGABYTES = 32  # go by as much; or this, if it is more
OPTIONS = (
    *("--max-batch", 8, "--max-waiting", PLACES - 8, "--max-choices", PLACES),
    *("--max-body", MOST_BYTES, "--send-timeout", SEND_TIMEOUT, "--shutdown-timeout", 120),
    *("--prefix-cache", 32, "--history-tokens", 10_000),  # so small that they are soon full
)


class Watch:
    """Over the server: what it holds while the clients are there, and once they have gone.

    Args:
        server: the process.
        clients: that ask it; what is wrong is added to what they found.
        pool: questions with the right answers.
    """

    def __init__(self, server: ServerProcess, clients: Clients, pool: Sequence[Question]) -> None:
        self.server = server
        self.clients = clients
        self.pool = pool
        self.before = server.vitals()
        self.seen: list[dict[str, float]] = []

    async def look(self) -> None:
        """Look, until cancelled."""
        while True:
            self.seen.append({"done": self.clients.done, **self.server.vitals()})
            await asyncio.sleep(0.25)

    async def settle(self) -> None:
        """Everything must be free again, and all places there."""
        deadline = time.monotonic() + SETTLING
        while (held := await self._held()) and time.monotonic() < deadline:
            await asyncio.sleep(0.2)
        self.clients.violations += held
        body = json.dumps({"prompt": "All places.", "max_tokens": 2, "n": PLACES}).encode()
        connection = Connection(self.server.port)
        await connection.send("POST", "/v1/completions", body)
        answer = await connection.answer()
        if answer.status != 200:
            self.clients.wrong("all places at once", f"status {answer.status}: {answer.error}")
        for number, question in enumerate(self.pool):
            await self.clients.check(connection, f"after-{number}", question, Random(number))
        connection.close()

    async def _held(self) -> list[str]:
        """What is still held: places, requests, open files, threads."""
        metrics = await self.server.metrics()
        gauges = {"num_requests_running": 0, "num_requests_waiting": 0, "requests_in_flight": 1}
        held = [f"{name} {metrics[name]:.0f}" for name, idle in gauges.items()
                if metrics[name] != idle]  # fmt: skip
        now = self.server.vitals()
        most = self.before["threads"] + POOLED
        if now["files"] > self.before["files"] + PIPES:
            held.append(f"{now['files']} open files; {self.before['files']} before")
        if now["threads"] > most:
            held.append(f"{now['threads']} threads; {most} are right")
        return held

    def _quarter(self) -> list[dict[str, float]]:
        """What was seen in the first quarter of the run."""
        return [row for row in self.seen if row["done"] <= self.clients.done / 4]

    def memory(self) -> dict[str, float]:
        """Resident megabytes: at a quarter of the run, at its end, and the most there were."""
        quarter = self._quarter()[-1]["megabytes"]
        end = self.seen[-1]["megabytes"]
        if end > quarter + max(FLAT * quarter, FLAT_MEGABYTES):
            self.clients.wrong("memory", f"{end:.0f} MB at the end, {quarter:.0f} MB at a quarter")
        most = max(row["megabytes"] for row in self.seen)
        return {"start": self.seen[0]["megabytes"], "quarter": quarter, "end": end, "most": most}

    async def end(self, seed: int) -> dict[str, Any]:
        """SIGTERM while as many ask as there are places: all of them must be answered."""
        random = Random(seed)
        single = [question for question in self.pool if question.n == 1]
        asked = sorted(single, key=lambda question: question.tokens)[-PLACES:]
        before = len(self.clients.violations)
        answering = [
            asyncio.create_task(self._last(f"last-{number}", question, random))
            for number, question in enumerate(asked)
        ]
        while (await self.server.metrics())["requests_in_flight"] - 1 + sum(
            task.done() for task in answering
        ) < len(asked):
            await asyncio.sleep(0.01)
        self.server.terminate()
        running = sum(not task.done() for task in answering)
        await asyncio.sleep(_HEARD)
        refused = 0
        while not all(task.done() for task in answering):
            refused += await self._refused_late()
            await asyncio.sleep(0.02)
        await asyncio.gather(*answering)
        status = await self.server.ended(60)
        if status != 0:
            self.clients.wrong("SIGTERM", f"the exit status is {status}")
        if not running:
            self.clients.wrong("SIGTERM", "everything was answered already")
        wrong = len(self.clients.violations) - before
        return {"running": running, "wrong": wrong, "refused": refused, "exit_status": status}

    async def _last(self, name: str, question: Question, random: Random) -> None:
        connection = Connection(self.server.port)
        try:
            async with asyncio.timeout(PATIENCE):
                await self.clients.check(connection, name, question, random)
        except (ConnectionError, TimeoutError, ValueError, KeyError) as error:
            self.clients.wrong(name, f"dropped: {type(error).__name__}: {error}")
        finally:
            connection.close()

    async def _refused_late(self) -> int:
        """Whether a request after SIGTERM was told to go elsewhere; it must not be answered."""
        connection = Connection(self.server.port)
        try:
            await connection.send("POST", "/v1/completions", self.pool[0].body())
            answer = await connection.answer()
        except ConnectionError:
            return 0  # it has closed its door
        finally:
            connection.close()
        if answer.status != 503 or "retry-after" not in answer.headers:
            self.clients.wrong("after SIGTERM", f"status {answer.status}: {answer.error}")
        return 1

    def read_log(self) -> dict[str, int]:
        """Requests by outcome; what the log must not have is a violation."""
        for line in self.server.log():
            bad = line.get("level") in ("error", "critical") or line["event"] == "raw"
            late = line.get("status") == 503 and line["outcome"] == "refused"
            if bad or (line.get("status", 0) >= 500 and not late):
                self.clients.wrong("log", json.dumps(line))
        return dict(Counter(line["outcome"] for line in self.server.requests()))


async def chaos(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; returns the result, ``violations`` in it."""
    pool = make_pool(options.bundle, size=options.pool, tokens=options.tokens, seed=options.seed)
    long = make_long(options.bundle, count=4, tokens=options.long_tokens)
    with ServerProcess(options.bundle, *OPTIONS) as server:
        await server.wait_until_ready()
        card = json.loads((await server.get("/v1/models"))[1])["data"][0]
        bad = bad_requests(card["max_model_len"], MOST_BYTES)
        clients = Clients(server, pool=pool, long=long, bad=bad)
        watch = Watch(server, clients, pool)
        looking = asyncio.create_task(watch.look())
        started = time.monotonic()
        await clients.run(
            planned(options.requests, Random(options.seed)),
            connections=options.connections,
            seed=options.seed,
            deadline=started + 60 * options.minutes,
        )
        seconds = time.monotonic() - started
        looking.cancel()
        if clients.done < options.requests:
            clients.violations.append(f"only {clients.done} requests in {options.minutes} minutes")
        memory = watch.memory()
        await watch.settle()
        metrics, vitals = await server.metrics(), server.vitals()
        end = await watch.end(options.seed)
        log = watch.read_log()
    if clients.counts["stalled"] and not clients.counts["stalled and given up"]:
        clients.violations.append("no stalled reader was given up: the buffers took it all")
    return {
        "bundle": options.bundle.stem,
        "requests": clients.done,
        "connections": options.connections,
        "seed": options.seed,
        "seconds": seconds,
        "questions": len(pool) + len(long),
        "counts": dict(clients.counts),
        "outcomes": log,
        "tokens": metrics["generation_tokens_total"],
        "memory": memory,
        "threads": {"before": watch.before["threads"], "after": vitals["threads"]},
        "files": {"before": watch.before["files"], "after": vitals["files"]},
        "series": watch.seen[:: max(1, len(watch.seen) // 40)],
        "sigterm": end,
        "violations": clients.violations,
    }


def report(result: dict[str, Any]) -> None:
    """For people."""
    print(
        f"{result['requests']} requests over {result['connections']} connections in "
        f"{result['seconds']:.0f} s, {result['tokens']:.0f} tokens; {result['questions']} "
        "questions, whose answers are known"
    )
    for name, number in sorted(result["counts"].items(), key=lambda item: -item[1]):
        print(f"  {number:5} {name}")
    print("the server's log: " + ", ".join(f"{n} {name}" for name, n in result["outcomes"].items()))
    memory, end = result["memory"], result["sigterm"]
    print(
        f"memory: {memory['start']:.0f} MB at the start, {memory['quarter']:.0f} after a quarter, "
        f"{memory['end']:.0f} at the end, {memory['most']:.0f} at most"
    )
    for name in ("threads", "files"):
        print(f"{name}: {result[name]['before']:.0f} before, {result[name]['after']:.0f} after")
    print(
        f"SIGTERM with {end['running']} requests running: {end['wrong']} wrong or dropped, "
        f"{end['refused']} later ones sent away, exit status {end['exit_status']}"
    )
    print(f"{len(result['violations'])} violations")
    for violation in result["violations"][:50]:
        print(f"  {violation[:600]}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = HERE.parent / "build" / "w8a8.bundle"
    parser.add_argument("bundle", nargs="?", type=Path, default=default)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--pool", type=int, default=48, help="different questions")
    parser.add_argument("--tokens", type=int, default=40, help="of the longest answer")
    parser.add_argument("--long-tokens", type=int, default=200, help="of those that stall")
    parser.add_argument("--minutes", type=float, default=30, help="no requests after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="serving_chaos")
    options = parser.parse_args(arguments)
    result = asyncio.run(chaos(options))
    report(result)
    print(write_result(options.name, result))
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
