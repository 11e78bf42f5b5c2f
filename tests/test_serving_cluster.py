"""The ingress of several replicas, without Ray: what goes where, and what clients see."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from specplug.serving.app import pages
from specplug.serving.bodies import BodyError, read_json
from specplug.serving.cluster.arguments import Arguments
from specplug.serving.cluster.ingress import Call, Ingress, ReplicaLostError
from specplug.serving.cluster.metrics import Counts, merged
from specplug.serving.cluster.replica import REPLICA_HEADER, answer
from specplug.serving.cluster.requests import Forwarded, prepared
from specplug.serving.cluster.routing import preferred
from specplug.serving.errors import ApiError
from specplug.serving.settings import ServerSettings

# --- which replica ------------------------------------------------------------------------------

QUEUES = st.dictionaries(st.text(min_size=1, max_size=8), st.integers(0, 20), min_size=1)


@given(QUEUES, st.binary(min_size=16, max_size=16), st.integers(1, 8))
def test_prefix_keeps_its_replica_until_its_queue_is_too_long(
    queues: dict[str, int], prefix: bytes, threshold: int
) -> None:
    home = preferred(dict.fromkeys(queues, 0), prefix, threshold)[0]
    order = preferred(queues, prefix, threshold)
    assert sorted(order) == sorted(queues)
    shortest = min(queues.values())
    if queues[home] < shortest + threshold:
        assert order[0] == home
    else:
        assert queues[order[0]] == shortest


@given(QUEUES)
def test_without_a_prefix_the_shortest_queue_is_taken(queues: dict[str, int]) -> None:
    order = preferred(queues, None, 4)
    assert [queues[name] for name in order] == sorted(queues.values())


@given(st.sets(st.text(min_size=1), min_size=2, max_size=6), st.binary(min_size=16, max_size=16))
def test_a_lost_replica_moves_only_its_own_prefixes(names: set[str], prefix: bytes) -> None:
    home, *others = preferred(dict.fromkeys(names, 0), prefix, 1)
    for lost in others:
        assert preferred(dict.fromkeys(names - {lost}, 0), prefix, 1)[0] == home


def test_prefixes_are_spread() -> None:
    homes = [preferred({"a": 0, "b": 0}, bytes([n] * 16), 4)[0] for n in range(200)]
    assert 60 < homes.count("a") < 140


# --- what is sent -------------------------------------------------------------------------------


def post(body: object, path: str = "/v1/chat/completions", key: str = "k") -> Forwarded:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = (
        (b"authorization", f"Bearer {key}".encode()),
        (b"content-length", str(len(content)).encode()),
    )
    return Forwarded(method="POST", path=path, headers=headers, body=content)


def ready(body: object, characters: int = 8, **options: Any) -> Forwarded:
    return prepared(post(body, **options), prefix_characters=characters)


def chat(*texts: object) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text} for text in texts]}


def test_a_request_without_a_seed_gets_one_of_its_own() -> None:
    made = [ready(chat("hello") | extra) for extra in ({}, {}, {"seed": None}, {"seed": -1})]
    seeds = [json.loads(one.body)["seed"] for one in made]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    for one in made:
        assert one.header(b"content-length") == str(len(one.body)).encode()
        assert json.loads(one.body)["messages"] == chat("hello")["messages"]


@given(
    st.dictionaries(st.text(max_size=3) | st.just("seed"), st.none() | st.text() | st.integers()),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"]),
    st.sampled_from(["", " ", "\r\n\t"]),
    st.booleans(),
)
def test_nothing_but_the_seed_is_changed(
    fields: dict[str, Any], encoding: str, space: str, ascii_only: bool
) -> None:
    text = space + json.dumps(fields, ensure_ascii=ascii_only, indent=len(space) or None) + space
    body = text.encode(encoding, "surrogatepass")
    try:
        read = read_json(body)
    except BodyError:  # such as UTF-16
        assert ready(body).body == body, "the replica refuses it"
        return
    made = json.loads(ready(body).body)
    if fields.get("seed") in (None, -1):
        assert 0 <= made.pop("seed") < 1 << 63
        read.pop("seed", None)
    assert made == read


def test_a_body_of_very_many_parts_is_not_read_by_the_ingress() -> None:
    body = b'{"prompt": [' + b"{}," * 200_000 + b"{}]}"
    assert prepared(post(body), prefix_characters=8).body is body
    ids = {"prompt": [7] * 100_000}
    assert ready(ids, path="/v1/completions").prefix is not None


def test_a_seed_that_is_given_and_what_is_no_object_stay_as_they_are() -> None:
    twice = b'{"prompt": "x", "prompt": "y"}'
    given = [chat("hello") | {"seed": seed} for seed in (5, -2, -1.0, True)]
    for body in (*given, twice, b"{nonsense", b"[" * 100_000, [1], "text", b""):
        sent = post(body)
        assert prepared(sent, prefix_characters=8).body == sent.body
    models = Forwarded(method="GET", path="/v1/models")
    assert prepared(models, prefix_characters=8) is models


def test_prefixes_are_of_a_tenant_and_of_whole_pieces() -> None:
    first = ready(chat("the same beginning, and one end")).prefix
    assert first is not None
    assert ready(chat("the same", "in two messages")).prefix == first
    assert ready({"prompt": "the same"}, path="/v1/completions").prefix == first
    assert ready({"prompt": ["the same", "other"]}, path="/v1/completions").prefix == first
    assert ready(chat("the same"), key="other").prefix != first
    assert ready(chat("the sane")).prefix not in (first, None)
    assert ready(chat("the sam")).prefix is None
    ids = ready({"prompt": [*range(9)]}, path="/v1/completions").prefix
    assert ids == ready({"prompt": [[*range(8)], [1]]}, path="/v1/completions").prefix
    assert ids is not None


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["messages", "prompt", "content", "seed", "x"]), inner
            )
        ),
    )
)
def test_no_json_makes_the_ingress_fail(body: object) -> None:
    ready(body)
    ready(body, path="/v1/completions")


# --- retries ------------------------------------------------------------------------------------

EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


def start(name: str, status: int = 200, *headers: tuple[bytes, bytes]) -> Message:
    headers = (*headers, (REPLICA_HEADER, name.encode()))
    return {"type": "http.response.start", "status": status, "headers": [*headers]}


def piece(body: bytes, more: bool = True) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": more}


class Fleet:
    """Replicas that do as told: each call takes the next script, messages and then an end."""

    def __init__(self, *scripts: list[Message | Exception], replicas: int = 2) -> None:
        self.scripts = list(scripts)
        self.asked: list[Forwarded] = []
        self.replicas = {f"r{number}": "" for number in range(replicas)}

    async def __call__(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        self.asked.append(request)
        for message in self.scripts.pop(0):
            if isinstance(message, Exception):
                raise message
            yield message


def ingress(call: Call, replicas: Callable[[], Mapping[str, str]], **options: Any) -> Ingress:
    settings = {"max_body_bytes": 1000, "body_timeout": 0.2, **options}
    return Ingress(
        call,
        replicas,
        retries=2,
        prefix_characters=8,
        settings=ServerSettings(**settings),
        pages=pages(),
    )


def request(
    app: Ingress, body: list[Message] | None = None, path: str = "/v1/chat/completions"
) -> tuple[int, dict[str, str], bytes, bool]:
    """Status, headers, body, and whether the answer was whole."""
    scope: Scope = {
        "type": "http",
        "method": "POST" if path.startswith("/v1/") else "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
    }
    waiting = body or [
        {"type": "http.request", "body": json.dumps(chat("hello")).encode(), "more_body": False}
    ]
    sent: list[Message] = []

    async def receive() -> Message:
        if waiting:
            return waiting.pop(0)
        await asyncio.sleep(60)
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    try:
        asyncio.run(app(scope, receive, send))
    except ApiError:
        whole = False
    else:
        whole = not sent[-1].get("more_body", False)
    headers = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(one["body"] for one in sent[1:]), whole


def test_a_request_whose_replica_is_lost_before_its_text_is_sent_again() -> None:
    lost = ReplicaLostError()
    fleet = Fleet(
        [lost], [start("r0", 200, EVENTS), lost], [start("r1"), piece(b"all", more=False)]
    )
    app = ingress(fleet, lambda: fleet.replicas)
    status, headers, body, whole = request(app)
    assert (status, headers["x-specplug-replica"], body, whole) == (200, "r1", b"all", True)
    assert len({one.body for one in fleet.asked}) == 1, "a retry asks for the same text"
    assert app.counts == Counts(requests=1, retries=2, lost=0)


def test_retries_are_bounded() -> None:
    fleet = Fleet(*[[ReplicaLostError()]] * 9)
    app = ingress(fleet, lambda: fleet.replicas)
    status, headers, body, _ = request(app)
    assert (status, headers["retry-after"]) == (503, "5")
    assert json.loads(body)["error"]["code"] == "replica_lost"
    assert len(fleet.asked) == 3
    assert app.counts == Counts(requests=1, retries=2, lost=1)


def test_a_stream_that_has_begun_ends_with_an_error() -> None:
    fleet = Fleet([start("r0", 200, EVENTS), piece(b"data: {}\n\n"), ReplicaLostError()])
    app = ingress(fleet, lambda: fleet.replicas)
    status, _, body, whole = request(app)
    assert (status, whole, len(fleet.asked)) == (200, True, 1)
    first, second = body.strip().split(b"\n\n")
    assert first == b"data: {}"
    error = json.loads(second.removeprefix(b"data: "))["error"]
    assert (error["code"], error["type"]) == ("replica_lost", "server_error")
    assert b"[DONE]" not in body
    assert app.counts.lost == 1


def test_a_body_that_has_begun_is_cut_off() -> None:
    fleet = Fleet([start("r0"), piece(b"{"), ReplicaLostError()])
    _, _, body, whole = request(ingress(fleet, lambda: fleet.replicas))
    assert (body, whole) == (b"{", False)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_another_replica_is_asked_when_one_is_full_or_broken(status: int) -> None:
    fleet = Fleet(
        [start("r0", status), piece(b"no", more=False)], [start("r1"), piece(b"yes", more=False)]
    )
    assert request(ingress(fleet, lambda: fleet.replicas))[2] == b"yes"
    assert [one.avoid for one in fleet.asked] == [frozenset(), {"r0"}]


def test_what_all_replicas_say_is_passed_on() -> None:
    fleet = Fleet(*([start(f"r{n}", 429), piece(b"full", more=False)] for n in range(2)))
    status, _, body, _ = request(ingress(fleet, lambda: fleet.replicas))
    assert (status, body, len(fleet.asked)) == (429, b"full", 2)


def test_refusals_and_failures_have_openais_shape() -> None:
    for failure, status in (
        (ApiError(429, "later", retry_after=3), 429),
        (RuntimeError("a secret"), 500),
    ):
        fleet = Fleet([failure])
        found, headers, body, _ = request(ingress(fleet, dict))
        assert found == status
        assert headers.get("retry-after") == ("3" if status == 429 else None)
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"secret" not in body


def test_bodies_have_limits() -> None:
    part = {"type": "http.request", "body": b"x" * 600, "more_body": True}
    app = ingress(Fleet(), dict)
    assert request(app, [part, {**part, "more_body": False}])[0] == 413
    assert request(app, [part])[0] == 408


def test_a_client_that_goes_while_it_asks_is_not_answered() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    asyncio.run(ingress(Fleet(), dict)({**scope, "query_string": b""}, receive, send))


def test_health_readiness_and_metrics() -> None:
    replicas: dict[str, str] = {}
    app = ingress(Fleet(), lambda: replicas)
    assert [request(app, path=path)[0] for path in ("/health", "/ready")] == [200, 503]
    text = '# HELP a A.\n# TYPE a counter\na 1.0\na{x="y"} 2.0\n# HELP b B.\nb 3.0\n'
    replicas |= {"r0": text, "r1": text}
    assert request(app, path="/ready")[0] == 200
    lines = request(app, path="/metrics")[2].decode().splitlines()
    assert lines[:7] == [
        "# HELP a A.",
        "# TYPE a counter",
        'a{replica="r0"} 1.0',
        'a{replica="r0",x="y"} 2.0',
        'a{replica="r1"} 1.0',
        'a{replica="r1",x="y"} 2.0',
        "# HELP b B.",
    ]
    assert "specplug:replicas 2" in lines


def test_merged_metrics_can_be_read() -> None:
    parser = pytest.importorskip("prometheus_client.parser")
    text = '# HELP a_seconds A.\n# TYPE a_seconds histogram\na_seconds_bucket{le="+Inf"} 1.0\n'
    families = [
        *parser.text_string_to_metric_families(merged({"x": text, "y": text}, Counts(requests=3)))
    ]
    assert [one.name for one in families] == [
        "a_seconds", "specplug:replicas", "specplug:ingress_requests",
        "specplug:ingress_retries", "specplug:ingress_lost",
    ]  # fmt: skip
    assert [sample.labels["replica"] for sample in families[0].samples] == ["x", "y"]


# --- a replica ----------------------------------------------------------------------------------


def test_a_replica_sees_its_client_go() -> None:
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert (await receive())["body"] == b"body"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send(piece(b"a"))
        try:
            seen.append((await receive())["type"])
        finally:
            seen.append("ended")

    async def leave() -> list[Message]:
        messages = answer(app, Forwarded(method="POST", path="/", body=b"body"), "me")
        first = await anext(messages)
        await messages.aclose()
        return first

    first = asyncio.run(leave())
    assert [message["type"] for message in first] == ["http.response.start", "http.response.body"]
    assert first[0]["headers"] == [(REPLICA_HEADER, b"me")]
    assert seen[-1] == "ended"


def test_a_failure_of_the_application_is_the_replicas() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise KeyError("what")

    async def ask() -> None:
        async for _ in answer(app, Forwarded(method="GET", path="/"), "me"):
            pass

    with pytest.raises(KeyError, match="what"):
        asyncio.run(ask())


# --- arguments ----------------------------------------------------------------------------------


def test_arguments_from_a_command_line(tmp_path: Path) -> None:
    made = Arguments.parse(
        {
            "bundle": str(tmp_path),
            "autoscaling": "1/4/8",
            "max_batch": "16",
            "request_timeout": "7.5",
            "allowed_hosts": "box,*.Example.com",
        }
    )
    assert made.server.allowed_hosts == ("box", "*.example.com")
    assert made.autoscaling is not None
    assert (made.autoscaling.min, made.autoscaling.max, made.autoscaling.target) == (1, 4, 8)
    assert (made.max_batch, made.threshold, made.server.request_timeout) == (16, 8, 7.5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "bundle is missing"),
        ({"bundle": "/x", "replicas": "two"}, "replicas 'two': .*integer"),
        ({"bundle": "/x", "replicas": "0"}, "replicas '0': .*greater than or equal to 1"),
        ({"bundle": "/x", "header_timeout": "5"}, "header_timeout: there is no such argument"),
        ({"bundle": "/x", "replica": "2"}, "replica: there is no such argument; .* replicas, "),
        ({"bundle": "/x", "server": {}}, "server: there is no such argument"),
        ({"bundle": "/x", "autoscaling": "3"}, "autoscaling '3': need min/max/target"),
        ({"bundle": "/x", "autoscaling": "3/2/1"}, "autoscaling '3/2/1': max 2 is less than min 3"),
        ({"bundle": "/x", "autoscaling": "1/2/1", "replicas": 2}, "give one of them"),
        ({"bundle": "/x", "allowed_hosts": "box:80"}, "allowed_hosts 'box:80': need a name such"),
        ({"bundle": "/x", "max_waiting": "-1"}, "max_waiting -1: need at least 0"),
        ({"bundle": "nowhere.bundle"}, "bundle 'nowhere.bundle' is no folder in "),
    ],
)
def test_wrong_arguments_are_told(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Arguments.parse(given)


def test_all_wrong_arguments_are_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)replica:.*max_batch 'no'.*cpus 'no'"):
        Arguments.parse({"bundle": "/x", "replica": 2, "max_batch": "no", "cpus": "no"})


def test_relative_bundles_are_made_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    assert Arguments.parse({"bundle": "b"}).bundle == tmp_path / "b"
