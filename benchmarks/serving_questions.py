"""What the load scripts ask, and what is right to answer: found out by plain decoding alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from measuring import HERE
from serving_client import Answer
from specplug import SamplingParams, SpeculativeDecoder
from specplug.bench.workload import read_workload

_SHARED = (
    "You answer questions for the readers of a small newspaper. Be short, be friendly, and say so "
    "when you do not know something. Never give more than one answer, and do not repeat the "
    "question. Numbers are written in digits. Here is what a reader wants to know today: "
)
"""More than one piece of the prefix cache."""


def prompts(count: int, longest: int) -> list[str]:
    """Of the development questions, the first ones of so many characters at most."""
    items = read_workload(HERE / "workloads" / "specbench-dev.jsonl", 1 << 10)
    return [item.prompt for item in items if len(item.prompt) <= longest][:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request, but for what may not change its answer."""

    chat: bool
    prompt: str
    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    n: int = 1
    stop: str | None = None
    texts: tuple[str, ...] = ()
    """The right ones, by choice."""
    reasons: tuple[str, ...] = ()
    tokens: int = 0
    """Of all choices."""

    @property
    def path(self) -> str:
        """Where to ask it."""
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    def body(self, **more: Any) -> bytes:
        """As it is sent."""
        asked: dict[str, Any] = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        if self.chat:
            asked["messages"] = [{"role": "user", "content": self.prompt}]
        else:
            asked["prompt"] = self.prompt
        if self.temperature:
            asked |= {"top_p": self.top_p, "seed": self.seed}
        if self.n > 1:
            asked["n"] = self.n
        if self.stop is not None:
            asked["stop"] = self.stop
        return json.dumps(asked | more).encode()

    def wrong(self, answer: Answer) -> str | None:
        """What is wrong with a whole answer; None: nothing."""
        wanted = dict(enumerate(self.texts))
        if answer.texts != wanted:
            return f"text {answer.texts!r} instead of {wanted!r}"
        if answer.reasons != dict(enumerate(self.reasons)):
            return f"finish reasons {answer.reasons} instead of {self.reasons}"
        if answer.usage is not None and answer.usage["completion_tokens"] != self.tokens:
            return f"{answer.usage['completion_tokens']} tokens counted instead of {self.tokens}"
        if len(answer.ids) != 1:
            return f"chunks of several answers: {answer.ids}"
        return None

    def wrong_so_far(self, answer: Answer) -> str | None:
        """What is wrong with the beginning of one."""
        for index, text in answer.texts.items():
            if not (index < self.n and self.texts[index].startswith(text)):
                return f"text {index} began {text!r}: {self.texts!r} is right"
        return None


def make_pool(bundle: Path, *, size: int, tokens: int, seed: int) -> list[Question]:
    """Different questions with the right answers, all kinds mixed.

    Args:
        bundle: that answers.
        size: how many.
        tokens: of the longest answer.
        seed: of the mix.
    """
    random = Random(seed)
    texts = prompts(size, 150)
    pool: list[Question] = []
    with SpeculativeDecoder.from_bundle(bundle, drafter="none") as decoder:
        for number in range(size):
            text = texts[number % len(texts)]
            question = Question(
                chat=number % 2 == 0,
                prompt=_SHARED + text if number % 4 < 2 else text,
                max_tokens=random.randint(1, tokens),
                temperature=random.choice((0.0, 0.7, 1.0)),
                top_p=random.choice((1.0, 0.9)),
                seed=random.getrandbits(32),
                n=2 if number % 5 == 4 else 1,
            )
            question = answered(decoder, question)
            if number % 3 == 2 and (stop := _within(question.texts[0], random)):
                question = answered(decoder, replace(question, stop=stop))
            pool.append(question)
    return pool


def make_long(bundle: Path, *, count: int, tokens: int) -> list[Question]:
    """Questions with long answers, two each."""
    with SpeculativeDecoder.from_bundle(bundle, drafter="none") as decoder:
        return [
            answered(
                decoder,
                Question(
                    chat=True,
                    prompt=f"Tell me a long story about this: {text}",
                    max_tokens=tokens,
                    temperature=1.0,
                    seed=number,
                    n=2,
                ),
            )
            for number, text in enumerate(prompts(count, 200))
        ]


def answered(decoder: SpeculativeDecoder, question: Question) -> Question:
    """With its right answers."""
    prompt = decoder.encode(
        [{"role": "user", "content": question.prompt}] if question.chat else question.prompt,
        chat=question.chat,
    )
    results = [
        decoder.generate(
            prompt,
            max_tokens=question.max_tokens,
            sampling=SamplingParams(
                temperature=question.temperature, top_p=question.top_p, seed=question.seed
            ),
            sample=sample,
            stop=question.stop or (),
        )
        for sample in range(question.n)
    ]
    return replace(
        question,
        texts=tuple(result.text for result in results),
        reasons=tuple(result.finish_reason for result in results),
        tokens=sum(len(result.tokens) for result in results),
    )


def _within(text: str, random: Random) -> str | None:
    """Some characters of a text, which an answer may be stopped at."""
    if len(text) < 12:
        return None
    start = random.randrange(len(text) // 2, len(text) - 3)
    found = text[start : start + 3]
    return None if "\N{REPLACEMENT CHARACTER}" in found else found


@dataclass(frozen=True, slots=True)
class Bad:
    """A request that must be refused."""

    name: str
    status: int
    body: bytes
    code: str | None = None
    """None: whatever belongs to the status."""
    kind: str = "application/json"
    method: str = "POST"
    path: str = "/v1/chat/completions"

    def wrong(self, answer: Answer) -> str | None:
        """What is wrong with how it was refused; None: nothing."""
        error = answer.error
        if answer.status != self.status:
            return f"status {answer.status} instead of {self.status}: {error}"
        if error is None or set(error) != {"message", "type", "param", "code"}:
            return f"an error of another shape: {error}"
        if self.code is not None and error["code"] != self.code:
            return f"code {error['code']} instead of {self.code}"
        return None


def bad_requests(context: int, most_bytes: int) -> Sequence[Bad]:
    """One of each kind, for a model of such a context and a server that takes such bodies."""

    def chat(**fields: Any) -> bytes:
        asked = {"messages": [{"role": "user", "content": "Hello."}], "max_tokens": 4}
        return json.dumps(asked | fields).encode()

    completions = "/v1/completions"
    long = json.dumps({"prompt": [1] * context}, separators=(",", ":")).encode()
    return [
        Bad("broken JSON", 400, chat()[:-9], "invalid_json"),
        Bad("no JSON at all", 400, b"\xff\xfe\x00", "invalid_json"),
        Bad("nested without end", 400, b"[" * 50_000),
        Bad("a list", 400, b"[]"),
        Bad("a body of nothing", 400, b" "),
        Bad("a number for a name", 400, chat(model=7)),
        Bad("a word for a number", 400, chat(max_tokens="many")),
        Bad("too hot", 400, chat(temperature=3)),
        Bad("not a number", 400, chat(temperature=float("nan"))),
        Bad("no tokens", 400, chat(max_tokens=0)),
        Bad("no messages", 400, chat(messages=[])),
        Bad("an unknown role", 400, chat(messages=[{"role": "king", "content": "Hello."}])),
        Bad("tools", 400, chat(tools=[{"type": "function"}]), "unsupported_parameter"),
        Bad("too many answers", 400, chat(n=128)),
        Bad("an unknown token", 400, json.dumps({"prompt": [1 << 40]}).encode(), path=completions),
        Bad("an empty prompt", 400, json.dumps({"prompt": ""}).encode(), path=completions),
        Bad("too long a prompt", 400, long, "context_length_exceeded", path=completions),
        Bad("too long an answer", 400, chat(max_tokens=context), "context_length_exceeded"),
        Bad("an unknown model", 404, chat(model="other"), "model_not_found"),
        Bad("an unknown place", 404, chat(), path="/v1/chat"),
        Bad("a wrong method", 405, b"", method="GET"),
        Bad("plain text", 415, chat(), kind="text/plain"),
        Bad("a form", 415, chat(), kind="application/x-www-form-urlencoded"),
        Bad("too many bytes", 413, chat(user="x" * 4 * most_bytes)),
        *_hostile(most_bytes - 1024),
    ]


def _hostile(size: int) -> Sequence[Bad]:
    """Bodies of about ``size`` bytes that cost much, or mean nothing, to whom reads them."""

    def filled(start: str, piece: str, end: str) -> bytes:
        return (start + ",".join([piece] * (size // (len(piece) + 1))) + end).encode()

    def chat(more: str) -> bytes:
        return ('{"messages":[{"role":"user","content":"Hello."}],' + more + "}").encode()

    words = ",".join(f'"field_{number}":0' for number in range(size // 16))
    wide = ",".join(f'"p{number}":{{"type":"string"}}' for number in range(size // 64))
    completions = "/v1/completions"
    return [
        Bad("empty messages", 400, filled('{"messages":[', "{}", "]}")),
        Bad("empty parts", 400, filled('{"messages":[{"role":"user","content":[', "{}", "]}]}")),
        Bad("lists of prompts", 400, filled('{"prompt":[', "[1]", "]}"), path=completions),
        Bad("prompts of nothing", 400, filled('{"prompt":[', '""', "]}"), path=completions),
        Bad("tokens below zero", 400, filled('{"prompt":[', "-1", "]}"), path=completions),
        Bad("unknown fields", 400, chat(words)),
        Bad("a bias of everything", 400, chat('"logit_bias":{' + words + "}")),
        Bad("stops without end", 400, chat('"stop":[' + ",".join(['"a"'] * (size // 4)) + "]")),
        Bad("an endless number", 400, chat('"seed":1' + "0" * (size // 2))),
        Bad("an infinite number", 400, chat('"temperature":1e999')),
        Bad("a wall of brackets", 400, chat('"messages":' + "[" * (size // 2) + "]" * (size // 2))),
        Bad("a pit of objects", 400, chat('"metadata":' + '{"a":' * 9000 + "0" + "}" * 9000)),
        Bad("an endless word", 400, chat(f'"tool_choice":"{"x" * size}"')),
        Bad("half a character", 400, chat('"stop":"\\ud800"')),
        Bad("half a character for a name", 400, chat('"\\ud800":1')),
        Bad("a schema too wide", 400, chat(
            '"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":'
            f'{{"type":"object","properties":{{{wide}}}}}}}}}'
        )),
        Bad("a regex without an end", 400, chat(f'"regex":"{"(" * 2000}"')),
    ]  # fmt: skip
