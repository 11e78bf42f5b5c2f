"""Who may come in: keys and limits hold however the application is reached."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from specplug.batching import BatchDecoder
from specplug.serving.app import create_app
from specplug.serving.door import PUBLIC
from specplug.serving.gate import Gate
from specplug.serving.keys import hash_key
from specplug.serving.settings import ServerSettings
from specplug.serving.worker import Worker
from tests_support.asgi import BEARER, JSON, KEYS, ask
from tests_support.serving import serving


@pytest.fixture(scope="module")
def keyed(batch: BatchDecoder) -> FastAPI:
    return create_app(ServerSettings(keys=KEYS, max_body_bytes=1000), batch)


# --- the ways to reach the application ------------------------------------------------------------


def bare(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "", {}


def below_starlette(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return Starlette(routes=[Mount("/llm", app)]), "/llm", {}


def below_two_parents(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    parent = FastAPI()
    parent.mount("/a", Starlette(routes=[Mount("/health", app)]))
    return parent, "/a/health", {}


def at_the_root_of_a_parent(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return Starlette(routes=[Mount("/", app)]), "", {}


def behind_a_prefix(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "/llm", {"root_path": "/llm"}


def behind_a_prefix_with_a_slash(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "/llm/", {"root_path": "/llm/"}


def behind_a_prefix_that_is_stripped(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "", {"root_path": "/llm"}


def behind_a_public_prefix(app: FastAPI) -> tuple[ASGIApp, str, dict[str, Any]]:
    return app, "/health", {"root_path": "/health"}


WAYS = [
    bare,
    below_starlette,
    below_two_parents,
    at_the_root_of_a_parent,
    behind_a_prefix,
    behind_a_prefix_with_a_slash,
    behind_a_prefix_that_is_stripped,
    behind_a_public_prefix,
]
METHODS = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "get", "BREW"]
PATHS = [
    *sorted(PUBLIC),
    "",
    "/v1/models",
    "/v1/models/",
    "/v1/models/tiny",
    "/v1/chat/completions",
    "/v1/completions",
    "//v1/models",
    "/v1//models",
    "///v1/models",
    "/V1/models",
    "/v1/MODELS",
    "/v1/models\n",
    "/v1/models\x00",
    "/./v1/models",
    "/health/../v1/models",
    "/health/",
    "//health",
    "/HEALTH",
    "/health\n",
    "/health/v1/models",
    "/health;/v1/models",
    "/v1/models/../../health",
    "/v1/models/health",
    "/v1/models//health",
    "/llm/v1/models",
    "/llm/health",
    "/docs",
    "/redoc",
    "/nothing",
    "http://127.0.0.1/v1/models",
    "*",
]
OPEN = {"health", "ready", "metrics", "page", "openapi"}


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_without_a_key_only_the_public_routes_answer(way: Any, keyed: FastAPI) -> None:
    app, prefix, fields = way(keyed)
    answered = set()
    for path, method in itertools.product(PATHS, METHODS):
        answer = ask(app, prefix + path, method, JSON, **fields)
        if "x-request-id" not in answer.headers:
            assert way in (below_starlette, below_two_parents, at_the_root_of_a_parent)
            assert answer.status in (307, 404), "a parent that knows no such path"
        elif answer.status != 401:
            assert answer.endpoint in OPEN, (path, method, answer.status)
            assert method in ("GET", "HEAD")
            answered.add(path)
        else:
            assert not answer.body_read, (path, method)
    stripped = {"/llm/health"} if way is behind_a_prefix_that_is_stripped else set()
    assert answered == PUBLIC | stripped


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_with_a_key_every_way_leads_to_the_routes(
    way: Any, keyed: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Worker, "alive", True)
    app, prefix, fields = way(keyed)
    assert ask(app, f"{prefix}/v1/models", "GET", BEARER, **fields).status == 200
    assert ask(app, f"{prefix}/v1/models", "DELETE", BEARER, **fields).status == 405
    assert ask(app, f"{prefix}/nothing", "GET", BEARER, **fields).status == 404
    long = ask(app, f"{prefix}/v1/completions", "POST", BEARER, JSON, body=b" " * 1001, **fields)
    assert (long.status, long.error["code"]) == (413, "request_too_large")
    text = ask(app, f"{prefix}/v1/completions", "POST", BEARER, **fields)
    assert text.status == 415
    monkeypatch.setattr(keyed.state.service, "draining", True)
    draining = ask(app, f"{prefix}/v1/completions", "POST", BEARER, JSON, **fields)
    assert (draining.status, draining.error["message"]) == (503, "the server is shutting down")


def test_every_route_is_public_or_needs_a_key(keyed: FastAPI) -> None:
    paths = {*keyed.openapi()["paths"], "/", "/openapi.json"}
    assert paths >= PUBLIC
    assert {"/v1/models", "/v1/completions", "/v1/chat/completions"} <= paths - PUBLIC
    for path in paths:
        statuses = {ask(keyed, path, method, JSON).status for method in ("GET", "POST")}
        assert (401 in {ask(keyed, path).status}) == (path not in PUBLIC), path
        assert 401 in statuses
    methods = {name for routes in keyed.openapi()["paths"].values() for name in routes}
    assert methods <= {"get", "post"}, "the gate bounds bodies of POST alone"


def test_routes_that_are_added_later_need_a_key(batch: BatchDecoder) -> None:
    app = create_app(ServerSettings(keys=KEYS), batch)
    more: list[BaseRoute] = [Route("/health", lambda request: None), Route("/x", lambda _: None)]
    app.mount("/more", Starlette(routes=more))
    for path in ("/more", "/more/", "/more/x", "/more/health"):
        assert ask(app, path).status == 401


@pytest.mark.parametrize(
    "given",
    [
        [],
        [b""],
        [b"Bearer"],
        [b"Bearer "],
        [b"Basic a key of anna's"],
        [b"Bearer a key of anna"],
        [b"Bearer A KEY OF ANNA'S"],
        [b"Bearer a key of anna's, Bearer a key of anna's"],
        [b"Bearer a key of anna's"] * 2,
        [b"Bearer \xff\xfe"],
        [b"Bearer anna"],
        [f"Bearer {hash_key(chr(97))}".encode()],
    ],
)
def test_no_other_key_is_taken(given: list[bytes], keyed: FastAPI) -> None:
    headers = [(b"authorization", value) for value in given]
    answer = ask(keyed, "/v1/models", "GET", *headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.error["code"] == "invalid_api_key"


@pytest.mark.parametrize("way", [bare, below_starlette], ids=lambda way: way.__name__)
def test_what_is_not_http_is_refused(way: Any, keyed: FastAPI) -> None:
    app, prefix, _ = way(keyed)
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope = {"path": f"{prefix}/v1/models", "headers": [BEARER], "query_string": b""}
    asyncio.run(app({**scope, "type": "websocket", "root_path": ""}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
    if way is bare:
        for kind in ("webtransport", "HTTP", ""):
            with pytest.raises(ValueError, match=f"ASGI scope of type '{kind}'"):
                asyncio.run(app({**scope, "type": kind}, receive, send))


def test_bodies_that_are_held_are_bounded(keyed: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "alive", True)
    answered: list[int] = []
    let = asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        await let.wait()
        await PlainTextResponse("done")(scope, receive, send)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answered.append(message["status"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b" " * 900, "more_body": False}

    async def run() -> None:
        gate = Gate(slow, keyed.state.service, None)
        headers = [BEARER, JSON]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        most = gate._intake._most // 2
        calls = [gate({**scope}, receive, send) for _ in range(most // 4096 + 9)]
        tasks = [asyncio.create_task(call) for call in calls]
        while len(answered) < 9:
            await asyncio.sleep(0)
        assert gate._intake.held <= most
        let.set()
        await asyncio.gather(*tasks)
        assert gate._intake.held == 0

    asyncio.run(run())
    assert set(answered) == {200, 503}
    assert answered.count(200) > 9


def test_over_a_socket_too(batch: BatchDecoder) -> None:
    with serving(batch, keys=KEYS) as server:
        for path in ("//v1/models", "/%76%31/models", "/v1%2Fmodels", "/health/..%2fv1/models"):
            assert server.send("GET", path)[0] == 401, path
        key = {"Authorization": BEARER[1].decode()}
        assert server.send("GET", "/%76%31/models", headers=key)[0] == 200
        assert server.send("GET", "/%68ealth")[0] == 200
