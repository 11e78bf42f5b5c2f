"""The ingress of several replicas under attack, without Ray: nothing is read unless allowed."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Scope

from specplug.serving.app import pages, with_cors
from specplug.serving.cluster.ingress import Ingress, ReplicaLostError
from specplug.serving.cluster.replica import REPLICA_HEADER, answer
from specplug.serving.cluster.requests import Forwarded
from specplug.serving.door import PUBLIC
from specplug.serving.errors import ApiError
from specplug.serving.keys import KeyRing, hash_key
from specplug.serving.settings import ServerSettings
from tests_support.asgi import BEARER, JSON, KEYS, Answer, ask

BODY = b'{"prompt": "a"}'


class Replicas:
    """Replicas that answer everything at once, and keep what they were asked."""

    def __init__(self) -> None:
        self.asked: list[Forwarded] = []

    async def __call__(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        self.asked.append(request)
        headers = [(REPLICA_HEADER, b"r0")]
        yield {"type": "http.response.start", "status": 200, "headers": headers}
        yield {"type": "http.response.body", "body": b"answered", "more_body": False}


def ingress(replicas: Any, **settings: Any) -> Ingress:
    return Ingress(
        replicas,
        lambda: {"r0": ""},
        retries=2,
        prefix_characters=8,
        settings=ServerSettings(**{"max_body_bytes": 1000, "body_timeout": 0.2, **settings}),
        pages=pages(),
    )


def at_the_root(app: ASGIApp) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "", {}


def with_a_route_prefix(app: ASGIApp) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "/llm", {"root_path": "/llm"}  # as Ray's proxy has it


def below_a_parent(app: ASGIApp) -> tuple[ASGIApp, str, dict[str, Any]]:
    return Starlette(routes=[Mount("/llm", app)]), "/llm", {}


WAYS = [at_the_root, with_a_route_prefix, below_a_parent]
PATHS = [
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/nothing",
    "//health",
    "/health/",
]
PATHS += ["/HEALTH", "/health/../v1/models", "", *sorted(PUBLIC)]
METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_without_a_key_no_replica_is_asked_and_nothing_is_read(way: Any) -> None:
    replicas = Replicas()
    made = ingress(replicas, keys=KEYS)
    app, prefix, fields = way(made)
    for path, method in itertools.product(PATHS, METHODS):
        reply = ask(app, prefix + path, method, JSON, body=BODY, **fields)
        if way is below_a_parent and not path:
            assert reply.status in (307, 404), "the parent's"
        elif path in PUBLIC and method in ("GET", "HEAD"):
            assert reply.status in ((200, 405) if method == "HEAD" else (200,)), path
        else:
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
            assert not reply.body_read, (path, method)
    assert not replicas.asked
    assert made.counts.requests == 0


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_with_a_key_replicas_see_the_path_within_the_application(way: Any) -> None:
    replicas = Replicas()
    app, prefix, fields = way(ingress(replicas, keys=KEYS))
    for path in ("/v1/completions", "/v1/models", "/nothing"):
        method = "GET" if path == "/v1/models" else "POST"
        reply = ask(app, prefix + path, method, JSON, BEARER, body=BODY, **fields)
        assert reply.body == b"answered"
        asked = replicas.asked[-1]
        assert (asked.path, asked.root_path) == (path, prefix)
        assert asked.header(b"authorization") == BEARER[1], "replicas check keys, too"
    assert json.loads(replicas.asked[0].body)["seed"] >= 0


def test_a_replica_has_the_prefix_as_its_root() -> None:
    seen: list[Scope] = []

    async def app(scope: Scope, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def call() -> None:
        forwarded = Forwarded(method="GET", path="/v1/models", root_path="/llm")
        async for _ in answer(app, forwarded, "me"):
            pass

    asyncio.run(call())
    assert (seen[0]["path"], seen[0]["root_path"]) == ("/llm/v1/models", "/llm")


def test_names_and_pages_are_checked_by_the_ingress() -> None:
    replicas = Replicas()
    app = ingress(replicas)
    for path in ("/v1/completions", "/health", "/metrics", "/"):
        method = "POST" if path.startswith("/v1") else "GET"
        assert ask(app, path, method, JSON, host=b"evil.example").status == 421
        evil = ask(app, path, method, JSON, (b"origin", b"https://evil.example"))
        assert (evil.status, evil.body_read) == (403, False)
    assert ask(app, "/v1/completions", "POST", (b"content-type", b"text/plain")).status == 415
    assert not replicas.asked


def test_an_allowed_page_is_let_in_and_may_read_also_refusals() -> None:
    replicas = Replicas()
    settings = ServerSettings(cors_origins=("https://chat.example",), keys=KEYS)
    app = with_cors(ingress(replicas, cors_origins=settings.cors_origins, keys=KEYS), settings)
    theirs = (b"origin", b"https://chat.example")
    for extra, status in (((BEARER,), 200), ((), 401)):
        reply = ask(app, "/v1/completions", "POST", JSON, theirs, *extra, body=BODY)
        assert reply.status == status
        assert reply.headers["access-control-allow-origin"] == "https://chat.example"
    asking = (b"access-control-request-method", b"POST")
    assert ask(app, "/v1/completions", "OPTIONS", theirs, asking).status == 200
    assert len(replicas.asked) == 1
    assert replicas.asked[0].header(b"origin") == b"", "or the replica would check it again"


def test_pages_are_answered_without_a_replica() -> None:
    app = ingress(Replicas())
    assert "/v1/completions" in json.loads(ask(app, "/openapi.json").body)["paths"]
    assert ask(app, "/").headers["content-type"].startswith("text/html")
    assert ask(app, "/", "HEAD").status == 200


# --- what is held at once -------------------------------------------------------------------------


class Slow:
    """Replicas that answer when they are let."""

    def __init__(self) -> None:
        self.let = asyncio.Event()
        self.held = 0

    async def __call__(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        self.held += 1
        await self.let.wait()
        yield {"type": "http.response.start", "status": 200, "headers": []}
        yield {"type": "http.response.body", "body": b"", "more_body": False}


def call(app: ASGIApp, body: bytes, *headers: tuple[bytes, bytes]) -> asyncio.Task[Answer]:
    scope: Scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), JSON, *headers],
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> Answer:
        await app(scope, receive, send)
        return Answer(scope, sent, True)

    return asyncio.create_task(run())


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_bodies_that_are_held_are_bounded_and_given_back() -> None:
    async def run() -> None:
        replicas = Slow()
        size = 40_000
        app = ingress(replicas, max_body_bytes=size, max_held_bytes=10 * size)
        body = b'{"prompt": "%s"}' % (b"a" * (size - 20))
        for _ in range(2):
            tasks = [call(app, body) for _ in range(30)]
            await settle()
            assert app._intake.held <= 10 * size
            refused = [task.result() for task in tasks if task.done()]
            assert 30 - len(refused) == replicas.held >= 2
            for reply in refused:
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
                assert reply.headers["connection"] == "close"
                assert reply.error["code"] == "unavailable"
            replicas.let.set()
            assert {reply.status for reply in await asyncio.gather(*tasks)} == {200, 503}
            assert app._intake.held == 0
            assert not app._intake._held_by
            replicas.let.clear()
            replicas.held = 0

    asyncio.run(run())


def test_one_key_leaves_room_for_another() -> None:
    async def run() -> None:
        replicas = Slow()
        keys = KeyRing({name: hash_key(f"a key of {name}'s") for name in ("anna", "bert")})
        size = 200_000
        app = ingress(replicas, keys=keys, max_body_bytes=size, max_held_bytes=6 * size)
        body = b'{"prompt": "%s"}' % (b"a" * (size - 20))
        annas = [call(app, body, BEARER) for _ in range(9)]
        await settle()
        assert sum(not task.done() for task in annas) == 2, "half of it, headers included"
        bert = call(app, body, (b"authorization", b"Bearer a key of bert's"))
        await settle()
        assert not bert.done()
        replicas.let.set()
        assert (await bert).status == 200
        await asyncio.gather(*annas)

    asyncio.run(run())


def test_a_body_alone_always_has_room() -> None:
    async def run() -> None:
        replicas = Slow()
        replicas.let.set()
        app = ingress(replicas, keys=KEYS, max_body_bytes=1 << 20, max_held_bytes=1)
        reply = await call(app, b'{"prompt": "%s"}' % (b"a" * ((1 << 20) - 20)), BEARER)
        assert reply.status == 200

    asyncio.run(run())


def test_many_small_requests_count_too() -> None:
    async def run() -> None:
        replicas = Slow()
        app = ingress(replicas, max_body_bytes=1, max_held_bytes=1 << 19)
        tasks = [call(app, b"1") for _ in range(500)]
        await settle()
        waiting = sum(not task.done() for task in tasks)
        assert 20 < waiting < 150
        replicas.let.set()
        await asyncio.gather(*tasks)
        assert app._intake.held == 0

    asyncio.run(run())


@pytest.mark.parametrize("failure", [ApiError(429, "later"), RuntimeError("no"), None])
def test_what_was_held_is_given_back_however_a_request_ends(failure: Exception | None) -> None:
    async def run() -> None:
        async def replicas(request: Forwarded) -> AsyncGenerator[Message, None]:
            if failure is None:
                await asyncio.sleep(60)
            else:
                raise failure
            yield {}

        app = ingress(replicas)
        task = call(app, BODY)
        await settle()
        if failure is None:
            assert app._intake.held > 0
            task.cancel()
            await asyncio.wait([task])
        else:
            assert (await task).status in (429, 500)
        assert app._intake.held == 0
        long = await call(app, b" " * 1001)
        assert long.status == 413
        assert app._intake.held == 0

    asyncio.run(run())


# --- comments of a stream -------------------------------------------------------------------------

EVENTS = (b"content-type", b"text/event-stream")


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    headers = (*headers, (REPLICA_HEADER, b"r0"))
    return {"type": "http.response.start", "status": status, "headers": [*headers]}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ([start(200, EVENTS), piece(b"data: 1\n\n", more=False)], b": wait\n\ndata: 1\n\n"),
        ([start(429), piece(b'{"error": 1}', more=False)], b': wait\n\ndata: {"error": 1}\n\n'),
    ],
)
def test_a_stream_that_had_comments_alone_may_be_another_replicas(
    second: list[Message], expected: bytes
) -> None:
    scripts: list[list[Message | Exception]] = [
        [start(200, EVENTS), piece(b": wait\n\n"), ReplicaLostError()],
        [*second],
        [*second],
    ]

    async def replicas(request: Forwarded) -> AsyncGenerator[Message, None]:
        for message in scripts.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message

    reply = ask(ingress(replicas), "/v1/completions", "POST", JSON, body=BODY)
    assert (reply.status, reply.body) == (200, expected)


def test_a_stream_that_had_comments_alone_and_no_replica_left_ends_with_an_error() -> None:
    async def replicas(request: Forwarded) -> AsyncGenerator[Message, None]:
        yield start(200, EVENTS)
        yield piece(b": wait\n\n")
        raise ReplicaLostError

    reply = ask(ingress(replicas), "/v1/completions", "POST", JSON, body=BODY)
    assert reply.status == 200
    *comments, last = reply.body.strip().split(b"\n\n")
    assert set(comments) == {b": wait"}
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "replica_lost"
