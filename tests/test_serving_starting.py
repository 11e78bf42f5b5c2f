"""What an operator gets wrong is said at the start, by the option's name; how the server ends."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specplug.batching import BatchDecoder
from specplug.cli.serve import _settings
from specplug.serving.settings import ServerSettings
from specplug.serving.worker import Worker
from tests_support.serving import PATIENCE, Running, serving, until

WRONG = [
    ("model_name", "--model-name", ""),
    ("model_name", "--model-name", "  "),
    ("model_name", "--model-name", "a\nb"),
    ("model_name", "--model-name", "a\x1b[0m"),
    *(
        ("otlp_endpoint", "--otlp-endpoint", text)
        for text in ("nope", "", "localhost:4318", "ftp://x", "http://", "http:///x", "http://a b")
    ),
    *(
        ("cors_origins", "--cors-origin", (text,))
        for text in (
            "example.com",
            "https://a.com/",
            "https://a.com/x",
            "https://A.com",
            "HTTPS://a.com",
            "https://a.com:443",
            "http://a.com:80",
            "http://a.com:",
            "http://",
            "https://*.a.com",
            "https://u@a.com",
            "",
        )
    ),
    ("allowed_hosts", "--allowed-host", ("http://x",)),
    ("max_body_bytes", "--max-body", 0),
    *(
        (f"{name}_timeout", f"--{name}-timeout", seconds)
        for name in ("header", "idle", "send", "step", "request", "shutdown")
        for seconds in (-1.0, float("nan"), float("inf"), 1e9)
    ),
]


@pytest.mark.parametrize(("name", "option", "value"), WRONG)
def test_a_wrong_setting_is_refused_and_the_option_named(
    name: str, option: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=f"^{name} .*need") as refused:
        ServerSettings(**{name: value})
    with pytest.raises(ValueError, match=f"^{option} ") as told:
        _settings(**{name: value})
    assert str(told.value).removeprefix(option) == str(refused.value).removeprefix(name)


def test_what_browsers_and_collectors_are_called_is_taken() -> None:
    origins: tuple[str, ...] = ("*", "null", "https://a.com", "http://localhost:3000")
    origins += ("http://[::1]:8080", "https://a.com:80", "chrome-extension://abcdef")
    ServerSettings(cors_origins=origins, model_name="Großes Modell/2")
    for url in ("http://localhost:4318", "https://a.com/otlp", "http://[::1]:4318/"):
        ServerSettings(otlp_endpoint=url)


@pytest.fixture(scope="module")
def batch(tiny_bundles: dict[str, Path]) -> Iterator[BatchDecoder]:
    with BatchDecoder.from_bundle(tiny_bundles["fp32"], max_batch=2) as decoder:
        yield decoder


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "identity, gzip", "x" * 500])
def test_an_encoded_body_is_refused_by_name(batch: BatchDecoder, encoding: str) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    with serving(batch) as server:
        headers = {"Content-Encoding": encoding}
        status, _, answer = server.send("POST", "/v1/completions", body, headers=headers)
        assert (status, b"Content-Encoding" in answer, len(answer) < 500) == (415, True, True)
        headers = {"Content-Encoding": "identity"}
        assert server.send("POST", "/v1/completions", body, headers=headers)[0] == 200


def test_load_balancers_may_ask_by_head(batch: BatchDecoder) -> None:
    with serving(batch) as server:
        until(lambda: server.service.ready)
        for path in ("/", "/health", "/ready", "/metrics", "/openapi.json"):
            status, _, body = server.send("HEAD", path)
            assert (status, body) == (200, b""), path
        server.service.drain()
        assert server.send("HEAD", "/ready")[0] == 503


def test_a_worker_refuses_options_that_nobody_reads(batch: BatchDecoder) -> None:
    worker = Worker(batch, lambda channel: None)
    with pytest.raises(TypeError, match=r"temperature.*SamplingParams"):
        worker.submit([1], temperature=1.0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        worker.submit([1], max_token=1)  # type: ignore[call-arg]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("name", ["SIGHUP", "SIGTERM"])
def test_a_half_sent_body_delays_no_end(tiny_bundle: Path, name: str) -> None:
    line = [sys.executable, "-m", "specplug", "serve", str(tiny_bundle), "--port", "0"]
    line += ["--draft-tokens", "2", "--shutdown-timeout", "1"]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    ) as process:
        try:
            assert process.stdout
            server = Running(None, int(process.stdout.readline().rpartition(":")[2]))  # type: ignore[arg-type]
            until(lambda: server.send("GET", "/ready")[0] == 200)
            with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE) as client:
                head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n"
                client.sendall(f"{head}Content-Type: application/json\r\n\r\n{{".encode())
                until(lambda: server.metric("requests_in_flight") >= 2)  # and the one that asks
                process.send_signal(getattr(signal, name))
                began = time.monotonic()
                answer = client.makefile("rb").read()
                assert b" 503 " in answer.splitlines()[0]
                assert b"shutting down" in answer
                process.wait(PATIENCE)
                assert (
                    0.9 < time.monotonic() - began < 5
                )  # of 1 + 5 seconds, when it was waited for
        finally:
            process.kill()
    assert process.returncode == 0
