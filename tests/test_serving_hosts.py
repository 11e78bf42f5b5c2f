"""Which names a server answers to, and which web pages may use it."""

from __future__ import annotations

import itertools
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from specplug.batching import BatchDecoder
from specplug.cli import serve
from specplug.serving.app import create_app
from specplug.serving.hosts import host_is_allowed, split_authority
from specplug.serving.keys import KeyRing
from specplug.serving.settings import ServerSettings
from specplug.serving.worker import Worker
from tests_support.asgi import BEARER, JSON, KEYS, ask
from tests_support.serving import PATIENCE, Running, serving

LOOPBACK = [
    "localhost",
    "LocalHost",
    "localhost.",
    "a.localhost",
    "127.0.0.1",
    "127.8.9.1",
    "[::1]",
]
LOOPBACK += ["[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]"]
STRANGE = ["evil.example", "localhost.evil.example", "evil-localhost", "127.0.0.1.evil.example"]
STRANGE += ["192.168.1.5", "0.0.0.0", "[2001:db8::1]", "127.1", "2130706433", "0x7f.0.0.1", "a_b"]
ODD: list[list[bytes]] = [
    [], [b""], [b" "], [b":8000"], [b"localhost:"b"x"], [b"localhost:123456"], [b"local host"],
    [b"evil.example@localhost"], [b"localhost@evil.example"], [b"localhost/"], [b"localhost#x"],
    [b"localhost, evil.example"], [b"localhost\\"], [b"http://localhost"], [b"::1"], [b"[::1"],
    [b"[127.0.0.1]"], [b"[fe80::1%25lo]"], [b"localhost\x00"], [b"\xb9localhost"], [b"localhost\n"],
    [b"localhost", b"localhost"], [b"localhost", b"evil.example"], [b"a" * 300],
]  # fmt: skip


@pytest.fixture(scope="module")
def keyless(batch: BatchDecoder) -> FastAPI:
    return create_app(ServerSettings(), batch)


@pytest.mark.parametrize("path", ["/v1/models", "/", "/health", "/metrics", "/openapi.json", "/no"])
def test_without_keys_only_loopback_names_are_answered_to(path: str, keyless: FastAPI) -> None:
    expected = 404 if path == "/no" else 503 if path == "/health" else 200
    for name, port in itertools.product(LOOPBACK, ["", ":", ":8000", ":1", ":65535"]):
        assert ask(keyless, path, host=f"{name}{port}".encode()).status == expected, name
    for name, port in itertools.product(STRANGE, ["", ":8000"]):
        answer = ask(keyless, path, host=f"{name}{port}".encode())
        assert (answer.status, answer.error["code"]) == (421, "host_not_allowed"), name
        assert "--allowed-host" in answer.error["message"]
    for names in ODD:
        headers = [(b"host", name) for name in names]
        answer = ask(keyless, path, "GET", *headers, host=None)
        assert (answer.status, answer.error["code"]) == (400, "invalid_host"), names


HOSTS = st.text("localhost.127:[]@/\\#?%,;xe\u212a\u0131 \t0") | st.builds(
    "{}{}{}".format,
    st.sampled_from([*LOOPBACK, *STRANGE, ""]),
    st.sampled_from(["", ".", ":", ":80", "@", "/", "#", " ", "%2e", ",", "\\"]),
    st.sampled_from([*LOOPBACK, *STRANGE, "", "80"]),
)


@given(HOSTS)
def test_whatever_is_answered_to_is_loopback_to_another_reader_too(text: str) -> None:
    found = split_authority(text)
    if found is None or not host_is_allowed(found[0], "127.0.0.1", ()):
        return
    read = urlsplit(f"//{text}")
    name = (read.hostname or "").removesuffix(".")
    assert not any((read.username, read.path, read.query, read.fragment))
    if name == "localhost" or name.endswith(".localhost"):
        return
    assert ip_address(name).is_loopback or ip_address(name).ipv4_mapped.is_loopback  # type: ignore[union-attr]


def test_other_names_that_the_operator_gives(batch: BatchDecoder) -> None:
    names = ("Box", "*.example.com", "10.0.0.9", "::2", "[::3]", "end.")
    app = create_app(ServerSettings(allowed_hosts=names), batch)
    allowed = [
        "box",
        "BOX:80",
        "a.example.com",
        "a.b.example.com.",
        "10.0.0.9",
        "[::2]",
        "[0::3]:1",
    ]
    for name in [*allowed, "end", *LOOPBACK]:
        assert ask(app, "/v1/models", host=name.encode()).status == 200, name
    for name in ["example.com", "aexample.com", "box.x", "x.box", "10.0.0.8", "[::4]", "*.a", "*"]:
        assert ask(app, "/v1/models", host=name.encode()).status in (400, 421), name
    app = create_app(ServerSettings(allowed_hosts=("*",)), batch)
    for headers in ODD:
        given = [(b"host", name) for name in headers]
        assert ask(app, "/v1/models", "GET", *given, host=None).status == 200


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        " ",
        "http://box",
        "box:80",
        "[::1]:80",
        "box/",
        ".box",
        "*box",
        "*.",
        "**",
        "b*x",
        "*.::1",
        "a,b",
        "b\u00fccher.example",
        ".",
    ],
)
def test_other_entries_are_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"allowed_hosts .*: need a name such as"):
        ServerSettings(allowed_hosts=("box", wrong))


@pytest.mark.parametrize(
    ("given", "host", "keys", "answered"),
    [
        ([], "127.0.0.1", None, ()),
        ([], "::", None, ()),
        ([], "box", None, ("box",)),
        (["box"], "box", None, ("box",)),
        (["a"], "box", None, ("a", "box")),
        ([], "box", KEYS, ()),
        (["a"], "box", KEYS, ("a", "box")),
    ],
)
def test_the_name_to_listen_at_is_answered_to(
    given: list[str], host: str, keys: KeyRing | None, answered: tuple[str, ...]
) -> None:
    assert serve._allowed_hosts(given, host, keys) == answered


def test_at_another_address_ip_addresses_are_answered_to(keyless: FastAPI) -> None:
    for own in ("192.168.1.5", "::ffff:192.168.1.5", "2001:db8::9"):
        reached = {"server": (own, 8000)}
        for name in ["192.168.1.5:8000", "10.0.0.7", "[2001:db8::1]", *LOOPBACK]:
            assert ask(keyless, "/v1/models", host=name.encode(), **reached).status == 200
        for name in ["evil.example", "127.1", "3232235781"]:
            assert ask(keyless, "/v1/models", host=name.encode(), **reached).status == 421
    for own in (None, ("/run/specplug.sock", None), ("::1", 8000), ("localhost", 80)):
        assert ask(keyless, "/v1/models", host=b"192.168.1.5", server=own).status == 421


def test_with_keys_names_are_checked_only_if_there_are_any(batch: BatchDecoder) -> None:
    for names, status in (((), 200), (("box",), 421)):
        app = create_app(ServerSettings(keys=KEYS, allowed_hosts=names), batch)
        assert ask(app, "/v1/models", "GET", BEARER, host=b"api.example.com").status == status
        assert ask(app, "/metrics", host=b"api.example.com").status == status
        assert ask(app, "/v1/models", host=b"box").status == 401


OURS = ["http://127.0.0.1:8000", "HTTP://127.0.0.1:8000", "https://127.0.0.1:8000"]
THEIRS = [
    "https://evil.example",
    "http://127.0.0.1",
    "http://127.0.0.1:8001",
    "http://localhost:8000",
]
THEIRS += ["null", "", "file://", "http://", "http://127.0.0.1:8000/", "http://127.0.0.1:8000@evil"]
THEIRS += ["127.0.0.1:8000", "//127.0.0.1:8000", "ws://127.0.0.1:8000", "chrome-extension://abc"]
THEIRS += [
    "http://127.0.0.1:8000, http://127.0.0.1:8000",
    "http://127.0.0.1:8000 https://evil.example",
]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/completions", "/metrics", "/health", "/no"])
def test_pages_of_other_sites_may_not_use_a_server_without_keys(
    path: str, keyless: FastAPI
) -> None:
    for method, origin in itertools.product(["GET", "POST", "OPTIONS", "PUT"], THEIRS):
        answer = ask(keyless, path, method, JSON, (b"origin", origin.encode()))
        assert (answer.status, answer.error["code"]) == (403, "origin_not_allowed"), origin
        assert not answer.body_read
        assert "access-control-allow-origin" not in answer.headers
    for origin in OURS:
        assert ask(keyless, path, "GET", (b"origin", origin.encode())).status != 403, origin
    for pair in (OURS[:2], [OURS[0], THEIRS[0]]):
        twice = [(b"origin", origin.encode()) for origin in pair]
        assert ask(keyless, path, "GET", *twice).status == 403


@pytest.mark.parametrize("host", ["box", "box:80", "box:443"])
def test_a_page_behind_a_proxy_is_our_own(host: str, batch: BatchDecoder) -> None:
    app = create_app(ServerSettings(allowed_hosts=("box",)), batch)
    port = host.partition(":")[2] or "80"
    schemes = {"80": "http", "443": "https"}
    origin = f"{schemes[port]}://box".encode()
    assert ask(app, "/v1/models", "GET", (b"origin", origin), host=host.encode()).status == 200
    assert ask(app, "/v1/models", "GET", (b"origin", origin), host=b"box:81").status == 403


def test_allowed_origins_and_keys_open_the_way(batch: BatchDecoder) -> None:
    theirs = (b"origin", b"https://chat.example")
    listed = create_app(ServerSettings(cors_origins=("https://chat.example",)), batch)
    anyone = create_app(ServerSettings(cors_origins=("*",)), batch)
    keyed = create_app(ServerSettings(keys=KEYS), batch)
    assert ask(listed, "/v1/models", "GET", theirs).status == 200
    assert ask(anyone, "/v1/models", "GET", theirs).status == 200
    assert ask(keyed, "/v1/models", "GET", theirs, BEARER).status == 200
    assert ask(keyed, "/v1/models", "GET", theirs).status == 401
    evil = (b"origin", b"https://evil.example")
    assert ask(listed, "/v1/models", "GET", evil).status == 403
    assert ask(anyone, "/v1/models", "GET", evil, host=b"evil.example").status == 421


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "",
        "text/plain; application/json",
        "TEXT/PLAIN",
        "application/jsonp",
    ],
)
def test_a_form_of_another_site_is_no_request(
    kind: str, keyless: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What browsers send across sites without asking first, from one that sends no Origin, too."""
    monkeypatch.setattr(Worker, "alive", True)
    body = b'{"prompt": "a", "max_tokens": 1}'
    kinds = [(b"content-type", kind.encode())] if kind else []
    answer = ask(keyless, "/v1/completions", "POST", *kinds, body=body)
    assert (answer.status, answer.body_read) == (415, False)
    evil = (b"origin", b"https://evil.example")
    assert ask(keyless, "/v1/completions", "POST", *kinds, evil, body=body).status == 403


def test_names_over_a_socket(batch: BatchDecoder) -> None:
    def raw(server: Running, head: str) -> int:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as connection:
            connection.sendall(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
            return int(connection.makefile("rb").readline().split()[1])

    with serving(batch) as server:
        for head, status in (
            ("GET /v1/models HTTP/1.1\nHost: localhost", 200),
            ("GET /v1/models HTTP/1.1\nHost: [::1]:9", 200),
            ("GET /v1/models HTTP/1.0\nHost: localhost", 200),
            ("GET /v1/models HTTP/1.0", 400),
            ("GET /v1/models HTTP/1.1", 400),
            ("GET /v1/models HTTP/1.1\nHost: localhost\nHost: localhost", 400),
            ("GET /v1/models HTTP/1.1\nHost: evil.example", 421),
            ("GET http://evil.example/v1/models HTTP/1.1\nHost: localhost", 404),
            ("GET /v1/models HTTP/1.1\nHost: localhost\nOrigin: https://evil.example", 403),
            ("GET /v1/models HTTP/1.1\nHost: evil.example\nX-Forwarded-Host: localhost", 421),
        ):
            assert raw(server, head) == status, head
