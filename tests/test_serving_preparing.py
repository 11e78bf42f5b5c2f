"""Between a validated request and its place in the queue: once a request, in its time, for as long
as somebody waits, and never all threads for one key."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specplug import grammar, preparation
from specplug.batching import BatchDecoder
from specplug.grammar_rehearsal import Rehearsals
from specplug.serving.keys import KeyRing, hash_key
from specplug.serving.pool import FairPool
from tests_support.serving import PATIENCE, Running, serving, until

LLMatcher = pytest.importorskip("llguidance").LLMatcher

NOTHING = np.empty(0, dtype=np.int64)
KEYS = KeyRing({"anna": hash_key("key of anna"), "ben": hash_key("key of ben")})
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 2, 3]}}, "required": ["a"]}
ASKED: dict[str, Any] = {"prompt": "x", "max_tokens": 12, "seed": 3}


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=4, draft_tokens=4) as decoder:
        yield decoder


def ask(server: Running, key: str | None = None, **fields: Any) -> tuple[int, Any]:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    status, _, body = server.send("POST", "/v1/completions", ASKED | fields, headers=headers)
    return status, json.loads(body)


class Blocked:
    """Holds back the tokenizing of prompts that begin with "held"."""

    def __init__(self, decoder: BatchDecoder) -> None:
        self._decoder, self._encode = decoder, decoder.encode
        self.go = threading.Event()
        self.held = 0

    def __enter__(self) -> Blocked:
        def encode(prompt: Any, **options: Any) -> list[int]:
            if isinstance(prompt, str) and prompt.startswith("held"):
                self.held += 1
                assert self.go.wait(PATIENCE)
            return self._encode(prompt, **options)

        self._decoder.encode = encode
        return self

    def __exit__(self, *exc: object) -> None:
        self.go.set()
        del self._decoder.encode


# --- once a request -------------------------------------------------------------------------------


def test_answers_share_what_is_made_for_them(batch, monkeypatch) -> None:
    """A grammar is compiled once, and its answers are those of requests for one each."""
    made: list[str] = []
    for module, name in (
        (preparation, "CompiledGrammar"), (preparation, "LogitRules"),
        (preparation, "token_array"), (preparation, "ExpectedText"),
    ):  # fmt: skip
        kind = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, kind=kind, name=name, **k: made.append(name) or kind(*a, **k)
        )
    fields = {
        "json_schema": SCHEMA,
        "logit_bias": {str(token): 1.5 for token in range(40)},
        "prediction": {"type": "content", "content": '{"a": 1}'},
    }
    with serving(batch, max_choices=8) as server:
        status, answer = ask(server, n=8, **fields)
        assert status == 200, answer
        assert sorted(made) == ["CompiledGrammar", "ExpectedText", "LogitRules", "token_array"]
        texts = [choice["text"] for choice in answer["choices"]]
        assert texts[0] == ask(server, **fields)[1]["choices"][0]["text"]
        assert len({*texts}) > 1
        server.wait_until_free()


# --- in its time, and while somebody waits --------------------------------------------------------


def test_the_deadline_counts_while_a_request_waits_and_is_prepared(batch) -> None:
    with serving(batch, request_timeout=0.4) as server, Blocked(batch) as blocked:
        with ThreadPoolExecutor(6) as pool:
            found = [pool.submit(ask, server, prompt="held") for _ in range(6)]
            assert [one.result()[0] for one in found] == [504] * 6
        assert blocked.held == 2  # half of the threads; those that waited never began
        assert server.service.admission.taken == 0
        until(lambda: server.service._pool.waiting == 0)
        steps = batch.target.forward
        assert not server.service.worker._channels
        blocked.go.set()
        until(lambda: server.service._pool.running == 0)
        assert batch.idle  # nothing was queued for those who had gone
        assert batch.target.forward == steps
        server.wait_until_free()


def test_a_client_that_leaves_ends_its_preparation(batch) -> None:
    body = json.dumps(ASKED | {"prompt": "held"}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n\r\n"
    ).encode()
    with serving(batch) as server, Blocked(batch) as blocked:
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        for client in clients:
            client.sendall(head + body)
        until(lambda: server.service._pool.waiting == 3)
        for client in clients:
            client.close()
        until(lambda: server.service.admission.taken == 0)
        until(lambda: server.service._pool.waiting == 0)
        assert blocked.held == 2
        blocked.go.set()
        until(lambda: server.service._pool.running == 0)
        assert batch.idle
        server.wait_until_free()


def test_stopping_ends_preparations(batch) -> None:
    with (
        serving(batch, shutdown_timeout=0.2) as server,
        ThreadPoolExecutor(1) as pool,
        Blocked(batch),
    ):
        asked = pool.submit(ask, server, prompt="held")
        until(lambda: server.service._pool.running == 1)
        server.service.abort()
        assert asked.result()[0] == 503


# --- fairly ---------------------------------------------------------------------------------------


def test_one_key_does_not_hold_all_threads(batch) -> None:
    """Nor do prompts hold up grammars, or the other way round, where there are no keys."""
    with serving(batch, keys=KEYS, max_waiting=60) as server, Blocked(batch) as blocked:
        with ThreadPoolExecutor(8) as pool:
            held = [pool.submit(ask, server, "key of anna", prompt="held") for _ in range(8)]
            until(lambda: server.service._pool.waiting == 6)
            assert ask(server, "key of ben")[0] == 200
            assert ask(server, "key of anna", json_schema=SCHEMA)[0] == 200
            blocked.go.set()
            assert {one.result()[0] for one in held} == {200}
        server.wait_until_free()


def test_lanes_take_turns() -> None:
    order: list[str] = []
    lock, opened = threading.Lock(), threading.Event()

    def call(name: str) -> str:
        assert opened.wait(PATIENCE)
        with lock:
            order.append(name)
        return name

    async def all_of_them() -> list[str]:
        pool = FairPool(1, "test")
        names = ["a1", "a2", "a3", "a4", "b1", "c1", "b2"]
        jobs = [asyncio.ensure_future(pool.run(one[0], lambda n=one: call(n))) for one in names]
        await asyncio.sleep(0)
        jobs[3].cancel()
        await asyncio.sleep(0)
        assert (pool.running, pool.waiting) == (1, 5)
        opened.set()
        found = await asyncio.gather(*jobs, return_exceptions=True)
        assert isinstance(found.pop(3), asyncio.CancelledError)
        with pytest.raises(ZeroDivisionError):
            await pool.run("d", lambda: 1 // 0)
        pool.close()
        return found

    assert asyncio.run(all_of_them()) == ["a1", "a2", "a3", "b1", "c1", "b2"]
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2"]


# --- within bounds --------------------------------------------------------------------------------

SLOW = "\n".join(
    ['start: "x" any', "any: " + " | ".join(f"rule_{n}" for n in range(3000))]
    + [f'rule_{n}: "a{n}" any' for n in range(3000)]
)  # its first token is easy; after it there are too many rules to look at


def test_a_grammar_that_is_slow_in_a_step_fails_its_own_answer(batch) -> None:
    """What one step may cost is bounded: everybody waits for it."""
    with serving(batch) as server, ThreadPoolExecutor(2) as pool:
        bystander = pool.submit(ask, server, max_tokens=200, temperature=0)
        status, answer = ask(server, grammar=SLOW, max_tokens=200)
        assert status == 400
        assert "the grammar cannot be followed" in answer["error"]["message"]
        assert bystander.result()[0] == 200
        server.wait_until_free()


@pytest.mark.parametrize(("seconds", "calls"), [(0.009, 400), (0.05, 3), (0.1, 1), (10.0, 0)])
def test_the_time_of_a_grammar_is_bounded_and_shared_by_its_answers(
    batch, monkeypatch, seconds: float, calls: int
) -> None:
    """Where a text can be read in many ways, the library takes seconds a token."""
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += seconds  # a call lies between two looks at the clock
        return now

    shared = batch.preparation({"sampling": grammar_params(grammar="start: /[ab]+/")})
    answers = [shared.grammar() for _ in range(4)]
    monkeypatch.setattr(grammar.time, "thread_time", clock)
    made = 0

    def ask_often() -> None:
        nonlocal made
        for made in range(400):
            answers[made % 4].allowed(NOTHING)
        made = 400

    if calls == 400:
        ask_often()
    else:
        with pytest.raises(grammar.GrammarLimitError, match="10 ms a token"):
            ask_often()
        for answer in answers:  # none of them goes on
            with pytest.raises(grammar.GrammarLimitError):
                answer.allowed(NOTHING)
    assert abs(made - calls) <= 1


def test_a_text_that_can_be_read_in_many_ways_fails_its_own_answer(batch) -> None:
    ways = " | ".join(["a a", '"x"', *(f'"x" {"a " * n}' for n in range(1, 8))])
    with serving(batch) as server, ThreadPoolExecutor(2) as pool:
        bystander = pool.submit(ask, server, max_tokens=200, temperature=0)
        status, answer = ask(
            server, grammar=f"start: a\na: {ways}", max_tokens=200, min_tokens=150, n=2
        )
        assert (status, "the grammar cannot be followed" in str(answer)) == (400, True), answer
        assert bystander.result()[0] == 200
        server.wait_until_free()


def test_what_fails_after_drafts_fails_only_if_the_text_gets_there(batch) -> None:
    """An error stays with the library's matcher; another one takes its place."""
    params = {"grammar": "start: /[ab]+/"}
    made = batch.preparation({"sampling": grammar_params(**params)}).grammar()
    assert made is not None
    nothing = np.empty(0, dtype=np.int64)
    before = made.allowed(nothing)
    broken = made._matcher
    broken.consume_token(int(np.flatnonzero(~before)[0]))  # now it is in error
    assert broken.is_error()
    with pytest.raises(grammar.GrammarLimitError, match="cannot be followed"):
        made.allowed(nothing)
    assert (made.allowed(nothing) == before).all()


def grammar_params(**params: Any) -> Any:
    from specplug import SamplingParams

    return SamplingParams(**params)


def test_a_prompt_that_cannot_fit_is_refused_before_it_is_tokenized(batch, monkeypatch) -> None:
    seen: list[int] = []
    encode = batch.tokenizer.encode
    monkeypatch.setattr(
        batch.tokenizer, "encode", lambda text, **o: seen.append(len(text)) or encode(text, **o)
    )
    with serving(batch) as server:
        long = "ab" * 200_000
        status, answer = ask(server, prompt=long)
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        assert max(seen, default=0) < 1000
        assert ask(server, prompt=long, truncate_prompt_tokens=9)[0] == 200  # of which some is kept
        status, answer = ask(server, prediction={"type": "content", "content": long})
        assert (status, answer["error"]["param"]) == (400, "prediction")
        assert "room" in answer["error"]["message"]
        assert seen.count(len(long)) == 1


def test_the_bound_of_tokens_is_never_too_high(batch) -> None:
    from tests_support.tokenizer_kinds import KINDS, made_kind

    known = set()
    for name in KINDS:
        tokenizer = made_kind(name).tokenizer
        for text in ("", "a", " " * 300, "The quick brown fox " * 20, "é狐\n\n" * 9, "<s></s>" * 5):
            least = tokenizer.fewest_tokens(text)
            assert least <= len(tokenizer.encode(text)), (name, text)
            known |= {name} if least else set()
    assert "byte-level" in known


def test_time_is_not_what_decides(batch) -> None:
    """Answers with a grammar are the same beside others that fail."""
    with serving(batch) as server, ThreadPoolExecutor(3) as pool:
        alone = ask(server, json_schema=SCHEMA)[1]["choices"][0]["text"]
        began = time.monotonic()
        others = [pool.submit(ask, server, grammar=SLOW, max_tokens=100) for _ in range(2)]
        assert ask(server, json_schema=SCHEMA)[1]["choices"][0]["text"] == alone
        assert [one.result()[0] for one in others] == [400, 400]
        assert time.monotonic() - began < PATIENCE


# --- grammars that never end ----------------------------------------------------------------------

ENDLESS = {
    "allOf": [
        {"type": "string", "pattern": f".*a{{{n},{n + 50}}}.{{{n * 7}}}b.*"} for n in range(20)
    ]
}
"""What the library, in spite of its limits, compiles for ever."""


def test_a_grammar_that_never_ends_is_refused_by_name(batch) -> None:
    """It would hold a thread for good: four such requests, and no other was ever prepared."""
    with serving(batch) as server, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, server, json_schema=ENDLESS) for _ in range(2)]
        assert ask(server)[0] == 200
        for status, answer in (one.result() for one in asked):
            assert (status, answer["error"]["param"]) == (400, "json_schema")
            assert "make it smaller or simpler" in answer["error"]["message"]
        until(lambda: server.service._pool.running == 0)
        assert ask(server, json_schema=SCHEMA)[0] == 200
        server.wait_until_free()
        rehearsals = server.service._rehearsals
    assert rehearsals._processes.qsize() == 0


def test_what_is_rehearsed_passes_unless_it_takes_too_long(batch) -> None:
    size = batch.target.spec.vocab_size
    rehearsals = Rehearsals(batch.tokenizer, vocab_size=size, seconds=0.5)
    try:
        for _ in range(2):
            rehearsals('start: "a"')
            rehearsals("wrong (")  # compiling it tells why
            with pytest.raises(ValueError, match=r"0\.5 seconds"):
                rehearsals(LLMatcher.grammar_from_json_schema(json.dumps(ENDLESS)))
        process = rehearsals._started()
        rehearsals._processes.put(process)
        process.kill()  # by whoever
        process.wait()
        rehearsals('start: "a"')
    finally:
        rehearsals.close()


def nested_tag(depth: int) -> dict[str, Any]:
    form: dict[str, Any] = {"type": "any_text"}
    for _ in range(depth):
        form = {"type": "or", "elements": [form]}
    return {"format": form}


@pytest.mark.parametrize(
    "fields",
    [
        {"grammar": "root ::= " + "(" * 5000 + '"a"' + ")" * 5000},
        {"structural_tag": json.dumps(nested_tag(400))},
        {"json_schema": '{"items":' * 5000 + "{}" + "}" * 5000},
    ],
    ids=["gbnf", "tag", "schema"],
)
def test_what_is_nested_too_deeply_is_refused_by_name(batch, fields) -> None:
    """It was an error of the server's."""
    with serving(batch) as server:
        status, answer = ask(server, **fields)
        assert (status, answer["error"]["param"]) == (400, *fields)
