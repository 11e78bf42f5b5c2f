"""A server whose engine fails at random, under load: every answer is right, or failed by name.

    .venv/bin/python benchmarks/serving_faults.py build/w8a8.bundle

`specplug serve` runs with its target in a `FaultyEngine`: calls raise exceptions of every kind,
come late, give scores that are not numbers, and copying of cache entries fails. The clients are
those of `serving_chaos.py`. Every completed answer is compared with that of plain decoding on a
sound engine, and so is every piece of one that failed. In the end memory must have stayed flat, no
place may be taken any more, and once the engine is sound again every answer must be right. The exit
status is 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from random import Random
from typing import Any

from measuring import HERE, write_result
from serving_chaos import MOST_BYTES, OPTIONS, Watch
from serving_client import Answer, Connection, ServerProcess
from serving_habits import Clients, manner, planned
from serving_questions import Question, bad_requests, make_long, make_pool

FAULTS = {
    "forward": 0.01,
    "scores": 0.005,
    "no_numbers": 0.005,
    "save": 0.02,
    "load": 0.02,
    "keep": 0.01,
    "clear": 0.01,
    "delay": 0.02,
    "delay_seconds": 0.05,
}
"""Arguments of :class:`specplug.engines.faulty.Faults`."""
SOUND = signal.SIGUSR1  # tells the server's process that its engine fails no more
_SERVE = "--serve"


def serve(arguments: Sequence[str]) -> None:
    """`specplug serve` with an engine that fails; ``arguments`` are the seed and a command line."""
    from specplug.batching import BatchDecoder
    from specplug.cli import app
    from specplug.engines.faulty import Faults, FaultyEngine

    seed, *rest = arguments
    opened = BatchDecoder.from_bundle

    def open_faulty(*args: Any, **options: Any) -> BatchDecoder:
        decoder = opened(*args, **options)
        decoder.prepare()  # costs are measured on the sound engine
        faulty = FaultyEngine(decoder.target, Faults(**FAULTS), int(seed))
        decoder.target = faulty
        signal.signal(SOUND, lambda *_: setattr(faulty, "faults", Faults()))
        return decoder

    BatchDecoder.from_bundle = open_faulty  # type: ignore[assignment, method-assign]
    sys.argv = ["specplug", "serve", *rest]
    app()


class Sufferers(Clients):
    """Clients that expect failures, and no wrong answer."""

    async def check(
        self,
        connection: Connection,
        name: str,
        question: Question,
        random: Random,
        **sending: Any,
    ) -> None:
        """Ask a question; the answer is right, or an error after a right beginning."""
        body = question.body(**manner(random))
        answer = await self._begin(connection, name, question.path, body, **sending)
        try:
            await connection.rest(answer)
        except ConnectionError:
            if answer.error is None:
                raise
            connection.close()
        if answer.error is None:
            self.wrong(name, question.wrong(answer))
            return
        self.counts["failed by name"] += 1
        self.wrong(name, _badly_failed(answer) or question.wrong_so_far(answer))

    async def _leave_stream(self, connection: Connection, name: str, random: Random) -> None:
        question = random.choice(self._pool)
        body = question.body(stream=True, speculation=random.random() < 0.7)
        answer = await self._begin(connection, name, question.path, body)
        if answer.status == 200:
            async with aclosing(connection.events()) as events:
                async for event in events:
                    answer.note(event)
                    if random.random() < 0.2 or answer.error is not None:
                        break
            self.wrong(name, question.wrong_so_far(answer))
        connection.close(reset=True)


def _badly_failed(answer: Answer) -> str | None:
    """What is wrong with an error; None: nothing."""
    error = answer.error
    if error is None or set(error) != {"message", "type", "param", "code"}:
        return f"an error of another shape: {error}"
    if answer.status not in (200, 500, 503):
        return f"status {answer.status}: {error}"
    if error["type"] != "server_error":
        return f"an error of the client's: {error}"
    return None


async def faults(options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; returns the result, ``violations`` in it."""
    pool = make_pool(options.bundle, size=options.pool, tokens=options.tokens, seed=options.seed)
    long = make_long(options.bundle, count=2, tokens=options.long_tokens)
    command = (sys.executable, __file__, _SERVE, str(options.seed))
    with ServerProcess(options.bundle, *OPTIONS, command=command) as server:
        await server.wait_until_ready()
        clients = Sufferers(server, pool=pool, long=long, bad=bad_requests(1 << 20, MOST_BYTES))
        plan = [
            habit for habit in planned(options.requests, Random(options.seed)) if habit not in _NOT
        ]
        watch = Watch(server, clients, pool)
        looking = asyncio.create_task(watch.look())
        started = time.monotonic()
        await clients.run(
            plan,
            connections=options.connections,
            seed=options.seed,
            deadline=started + 60 * options.minutes,
        )
        seconds = time.monotonic() - started
        looking.cancel()
        if clients.done < len(plan):
            clients.violations.append(f"only {clients.done} requests in {options.minutes} minutes")
        failed = clients.counts["failed by name"]
        memory = watch.memory()
        os.kill(server.process.pid, SOUND)
        await watch.settle()
        if clients.counts["failed by name"] > failed:
            clients.violations.append("answers failed on a sound engine")
        end = await watch.end(options.seed)
    return {
        "bundle": options.bundle.stem,
        "requests": clients.done,
        "connections": options.connections,
        "seed": options.seed,
        "seconds": seconds,
        "faults": FAULTS,
        "counts": dict(clients.counts),
        "memory": memory,
        "series": watch.seen[:: max(1, len(watch.seen) // 40)],
        "sigterm": end,
        "violations": clients.violations,
    }


_NOT = ("stalled", "refused")  # habits that have nothing to do with the engine


def report(result: dict[str, Any]) -> None:
    """For people."""
    print(f"{result['requests']} requests in {result['seconds']:.0f} s")
    for name, number in sorted(result["counts"].items(), key=lambda item: -item[1]):
        print(f"  {number:5} {name}")
    memory = result["memory"]
    print(
        f"memory: {memory['start']:.0f} MB at the start, {memory['quarter']:.0f} after a quarter, "
        f"{memory['end']:.0f} at the end"
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
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=24)
    parser.add_argument("--pool", type=int, default=40, help="different questions")
    parser.add_argument("--tokens", type=int, default=40, help="of the longest answer")
    parser.add_argument("--long-tokens", type=int, default=100, help="of the longest of all")
    parser.add_argument("--minutes", type=float, default=20, help="no requests after these")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="serving_faults")
    options = parser.parse_args(arguments)
    result = asyncio.run(faults(options))
    report(result)
    print(write_result(options.name, result))
    return 1 if result["violations"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == [_SERVE]:
        serve(sys.argv[2:])
    else:
        sys.exit(main())
