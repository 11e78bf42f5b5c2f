"""Many streams over HTTP: throughput and latency of `specplug serve` by load.

    .venv/bin/python benchmarks/serving_load.py build/w8a8.bundle

A closed loop: so many streams are always under way, and when one ends, the next begins. With
speculation and without (`"speculation": false`) take turns on one server. Each load and repeat has
a server of its own, without a prefix cache, and so asks nobody the same twice but for the two
systems: what is drafted was never seen before in that server, and what plain decoding wrote is not
remembered for the other. (The prompts' own order is the same everywhere.) Clients and server share
the machine's cores.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import HERE, write_result
from serving_client import Connection, ServerProcess
from serving_questions import Question, prompts

LOADS = (1, 2, 4, 8, 16)
SYSTEMS = {"plain": False, "auto": True}


@dataclass(slots=True)
class Run:
    """What one pass over the questions took; times in seconds."""

    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    """To each stream's first token."""
    between: list[float] = field(default_factory=list)
    """Between tokens; those that came together share the time since those before."""
    texts: dict[int, str] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """New ones, of all streams."""
        return len(self.first) + len(self.between)

    def figures(self) -> dict[str, float]:
        """Tokens a second, and latencies."""
        found = {"tokens_per_second": self.tokens / self.seconds}
        for name, values in (("first_token", self.first), ("inter_token", self.between)):
            cuts = statistics.quantiles(values, n=20, method="inclusive")
            found |= {f"{name}_p50": cuts[9], f"{name}_p95": cuts[18]}
        return found


async def one_pass(port: int, questions: Sequence[Question], load: int, speculation: bool) -> Run:
    """Ask everything, so many at a time."""
    run = Run()
    left = iter(enumerate(questions))

    async def client() -> None:
        connection = Connection(port)
        for number, question in left:
            await stream(connection, number, question)
        connection.close()

    async def stream(connection: Connection, number: int, question: Question) -> None:
        body = question.body(
            stream=True, speculation=speculation, stream_options={"include_token_origins": True}
        )
        run.texts[number] = ""
        latest = time.perf_counter()
        begun = False
        await connection.send("POST", question.path, body)
        status, _ = await connection.head()
        if status != 200:
            raise RuntimeError(f"status {status}: {(await connection.body()).decode()}")
        async for event in connection.events():
            tokens = [token for choice in event["choices"] for token in choice.get("tokens", ())]
            if not tokens:
                continue
            now = time.perf_counter()
            if begun:
                run.between += [(now - latest) / len(tokens)] * len(tokens)
            else:  # the prompt's own call gives one
                run.first.append(now - latest)
                run.between += [0.0] * (len(tokens) - 1)
            begun, latest = True, now
            run.texts[number] += "".join(token["text"] for token in tokens)

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(load)))
    run.seconds = time.perf_counter() - started
    return run


async def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Figures by load and system, of every repeat."""
    questions = [
        Question(chat=True, prompt=prompt, max_tokens=options.tokens)
        for prompt in prompts(options.prompts, options.longest_prompt)
    ]
    figures: dict[str, dict[str, list[dict[str, float]]]] = {}
    texts: list[dict[int, str]] = []
    for repeat in range(options.repeats):
        for load in options.loads:
            command = ("--max-batch", max(load, 2), "--prefix-cache", 0)
            with ServerProcess(options.bundle, *command) as server:
                await server.wait_until_ready()
                names = list(SYSTEMS) if repeat % 2 == 0 else list(SYSTEMS)[::-1]
                warm = [Question(chat=True, prompt="Hello.", max_tokens=8)]
                for name in names:
                    await one_pass(server.port, warm, 1, SYSTEMS[name])
                for name in names:
                    run = await one_pass(server.port, questions, load, SYSTEMS[name])
                    texts.append(run.texts)
                    found = figures.setdefault(str(load), {}).setdefault(name, [])
                    found.append(run.figures())
        print(f"  {repeat + 1} of {options.repeats}", flush=True)
    return {
        "bundle": options.bundle.stem,
        "prompts": len(questions),
        "longest_prompt": options.longest_prompt,
        "tokens": options.tokens,
        "repeats": options.repeats,
        "runs": len(texts),
        "same_texts": sum(one == texts[0] for one in texts),
        "loads": figures,
    }


def report(result: dict[str, Any]) -> None:
    """Medians over the repeats, as a table."""
    print("  load  system  tokens/s   first token p50, p95 (ms)   between tokens p50, p95 (ms)")
    for load, systems in result["loads"].items():
        for name, runs in systems.items():
            found = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            first, between = (
                f"{1000 * found[f'{what}_p50']:7.0f} {1000 * found[f'{what}_p95']:7.0f}"
                for what in ("first_token", "inter_token")
            )
            print(f"{load:>6}  {name:6} {found['tokens_per_second']:9.1f}   {first}   {between}")
        ratio = statistics.median(
            auto["tokens_per_second"] / plain["tokens_per_second"]
            for auto, plain in zip(systems["auto"], systems["plain"], strict=True)
        )
        print(f"        auto over plain {ratio:.2f}")
    print(f"  texts the same in {result['same_texts']} of {result['runs']} passes")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = HERE.parent / "build" / "w8a8.bundle"
    parser.add_argument("bundle", nargs="?", type=Path, default=default)
    parser.add_argument("--prompts", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--longest-prompt", type=int, default=800, help="in characters")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--loads", type=int, nargs="+", default=LOADS)
    parser.add_argument("--name", default="serving_load")
    options = parser.parse_args(arguments)
    result = asyncio.run(measure(options))
    report(result)
    print(write_result(options.name, result))


if __name__ == "__main__":
    main()
