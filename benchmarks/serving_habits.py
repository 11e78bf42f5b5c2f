"""Clients of every habit, good and bad, and what they find wrong."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing
from random import Random
from typing import Any

from serving_client import Answer, Connection, ServerProcess
from serving_questions import Bad, Question

MIX = {
    "answered": 0.62,
    "hung up in the stream": 0.12,
    "hung up before the answer": 0.06,
    "refused": 0.12,
    "sent slowly": 0.04,
    "hung up in the body": 0.02,
    "stalled": 0.02,
}
PATIENCE = 300.0  # seconds after which an answer is lost


def planned(requests: int, random: Random) -> list[str]:
    """The habits of so many requests, shuffled."""
    plan = [habit for habit, share in MIX.items() for _ in range(round(share * requests))]
    plan += ["answered"] * (requests - len(plan))
    random.shuffle(plan)
    return plan[:requests]


class Clients:
    """The clients, and what they find.

    Args:
        server: that they ask.
        pool: questions with the right answers.
        long: some with long ones.
        bad: requests to be refused.
    """

    def __init__(
        self,
        server: ServerProcess,
        *,
        pool: Sequence[Question],
        long: Sequence[Question],
        bad: Sequence[Bad],
    ) -> None:
        self._server = server
        self._pool = pool
        self._long = long
        self._bad = bad
        self.violations: list[str] = []
        """What was not as it should be."""
        self.counts: Counter[str] = Counter()
        """Of each habit, and of what else happened."""
        self.done = 0
        """Requests, whatever became of them."""
        self._habits: dict[str, Callable[[Connection, str, Random], Awaitable[None]]] = {
            "answered": self._ask,
            "hung up in the stream": self._leave_stream,
            "hung up before the answer": self._leave_early,
            "refused": self._err,
            "sent slowly": self._ask_slowly,
            "hung up in the body": self._leave_body,
            "stalled": self._stall,
        }

    async def run(
        self, plan: Sequence[str], *, connections: int, seed: int, deadline: float
    ) -> None:
        """Do all that is planned, until a deadline (monotonic) at most."""
        left = enumerate(plan)
        await asyncio.gather(*(self._client(left, seed, deadline) for _ in range(connections)))

    async def _client(self, plan: Iterator[tuple[int, str]], seed: int, deadline: float) -> None:
        connection = Connection(self._server.port)
        for number, habit in plan:
            if time.monotonic() > deadline:
                break
            name = f"chaos-{number}"
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._habits[habit](connection, name, Random(f"{seed}.{number}"))
                self.counts[habit] += 1
            except TimeoutError:
                self.wrong(name, f"{habit}: lost, it took more than {PATIENCE:.0f} s")
                connection.close()
            except (ConnectionError, ValueError, KeyError) as error:
                self.wrong(name, f"{habit}: {type(error).__name__}: {error}")
                connection.close()
            self.done += 1
        connection.close()

    def wrong(self, name: str, what: str | None) -> None:
        """Note a violation, if it is one."""
        if what is not None:
            self.violations.append(f"{name}: {what}")

    # --- habits ------------------------------------------------------------------------------

    async def _begin(
        self,
        connection: Connection,
        name: str,
        path: str,
        body: bytes,
        *,
        method: str = "POST",
        **sending: Any,
    ) -> Answer:
        """Have a request taken, and read the head of its answer."""
        while True:
            await connection.send(method, path, body, headers={"X-Request-Id": name}, **sending)
            answer = Answer(*await connection.head())
            if answer.headers["x-request-id"] != name:
                self.wrong(name, f"got the answer of {answer.headers['x-request-id']}")
            if answer.status != 429:
                return answer
            await connection.rest(answer)
            if answer.error is None or answer.error["code"] != "rate_limit_exceeded":
                self.wrong(name, f"429 with {answer.error}")
            self.counts["told to come again"] += 1
            await asyncio.sleep(int(answer.headers["retry-after"]))

    async def _ask(self, connection: Connection, name: str, random: Random, **sending: Any) -> None:
        question = random.choice(self._pool)
        await self.check(connection, name, question, random, **sending)

    async def check(
        self,
        connection: Connection,
        name: str,
        question: Question,
        random: Random,
        **sending: Any,
    ) -> None:
        """Ask a question, and compare the answer."""
        body = question.body(**manner(random))
        answer = await self._begin(connection, name, question.path, body, **sending)
        await connection.rest(answer)
        if answer.status != 200 or answer.error is not None:
            self.wrong(name, f"status {answer.status}: {answer.error}")
        else:
            self.wrong(name, question.wrong(answer))

    async def _ask_slowly(self, connection: Connection, name: str, random: Random) -> None:
        pieces = random.randint(2, 12)
        await self._ask(connection, name, random, pieces=pieces, pause=random.uniform(0.01, 0.2))

    async def _leave_stream(self, connection: Connection, name: str, random: Random) -> None:
        question = random.choice(self._pool)
        body = question.body(stream=True, speculation=random.random() < 0.7)
        answer = await self._begin(connection, name, question.path, body)
        left = random.randint(0, 6)
        async with aclosing(connection.events()) as events:
            async for event in events:
                answer.note(event)
                left -= 1
                if left < 0:
                    break
        connection.close(reset=random.random() < 0.5)
        self.wrong(name, question.wrong_so_far(answer))

    async def _leave_early(self, connection: Connection, name: str, random: Random) -> None:
        question = random.choice(self._pool)
        headers = {"X-Request-Id": name}
        body = question.body(**manner(random))
        await connection.send("POST", question.path, body, headers=headers)
        await asyncio.sleep(random.choice((0.0, random.uniform(0.0, 0.5))))
        connection.close(reset=random.random() < 0.5)

    async def _leave_body(self, connection: Connection, name: str, random: Random) -> None:
        question = random.choice(self._pool)
        share = random.uniform(0.0, 0.95)
        await connection.send("POST", question.path, question.body(), share=share)
        await asyncio.sleep(random.uniform(0.0, 0.3))
        connection.close(reset=random.random() < 0.5)

    async def _err(self, connection: Connection, name: str, random: Random) -> None:
        bad = random.choice(self._bad)
        answer = await self._begin(
            connection, name, bad.path, bad.body, method=bad.method, kind=bad.kind
        )
        what = bad.wrong(await connection.rest(answer))
        self.wrong(name, what and f"{bad.name}: {what}")

    async def _stall(self, connection: Connection, name: str, random: Random) -> None:
        """Read a little, then nothing until the server has done with the request."""
        question = random.choice(self._long)
        reader = Connection(self._server.port, small=True)
        try:
            body = question.body(stream=True, logprobs=True, top_logprobs=20)
            answer = await self._begin(reader, name, question.path, body)
            async with aclosing(reader.events()) as events:
                answer.note(await anext(events))
                while not any(line["id"] == name and line["status"] != 429
                              for line in self._server.requests()):  # fmt: skip
                    await asyncio.sleep(0.2)
                try:
                    async for event in events:
                        answer.note(event)
                except ConnectionError:
                    self.counts["stalled and given up"] += 1
                    self.wrong(name, question.wrong_so_far(answer))
                else:
                    self.wrong(name, question.wrong(answer))
        finally:
            reader.close(reset=True)


def manner(random: Random) -> dict[str, Any]:
    """What a request says that must not change the text."""
    manner: dict[str, Any] = {}
    if random.random() < 0.5:
        manner["stream"] = True
        if random.random() < 0.5:
            manner["stream_options"] = {"include_usage": True}
    if random.random() < 0.3:
        manner["speculation"] = False
    return manner
