"""The log is written on a thread: in order, whole, and never at the cost of whoever logs."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator

import pytest

from specplug.serving import logs
from specplug.serving.logs import Lines
from tests_support.serving import PATIENCE, until


class Pipe:
    """Standard error that somebody may read, or not."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        self.writing = writing
        self.log = logging.Logger("of a test")
        self.handler = Lines(writing)
        self.log.addHandler(self.handler)

    def read_on(self, found: list[dict]) -> threading.Thread:
        def run() -> None:
            with os.fdopen(self.reading, "rb") as lines:
                found.extend(map(json.loads, lines))

        reader = threading.Thread(target=run)
        reader.start()
        return reader


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.log.removeHandler(made.handler)


def test_lines_are_whole_and_in_order(pipe, monkeypatch) -> None:
    monkeypatch.setattr(logs, "_FLUSHED", PATIENCE)
    found: list[dict] = []
    reader = pipe.read_on(found)
    long = "x" * 300_000  # more than a pipe holds
    for number in range(200):
        pipe.log.info("%d", number, extra={"fields": {"number": number, "text": long[:1]}})
    pipe.log.info("last", extra={"fields": {"text": long}})
    try:
        raise ValueError("why")
    except ValueError:
        pipe.log.exception("it broke")
    pipe.handler.flush()
    os.close(pipe.writing)
    reader.join(PATIENCE)
    assert [one.get("number") for one in found[:200]] == list(range(200))
    assert found[200]["text"] == long
    assert "ValueError: why" in found[201]["traceback"]


def test_a_log_that_nobody_reads_keeps_nobody_waiting(pipe, monkeypatch) -> None:
    monkeypatch.setattr(logs, "MOST_LINES", 50)
    monkeypatch.setattr(logs, "_FLUSHED", 0.1)
    began = time.monotonic()
    for number in range(500):
        pipe.log.info("", extra={"fields": {"number": number, "text": "x" * 10_000}})
    pipe.handler.flush()
    assert time.monotonic() - began < PATIENCE / 2
    assert pipe.handler._waiting.qsize() <= 50 + 1
    found: list[dict] = []
    reader = pipe.read_on(found)
    until(lambda: any("were lost" in one.get("message", "") for one in found))
    monkeypatch.setattr(logs, "_FLUSHED", PATIENCE)
    pipe.handler.flush()
    os.close(pipe.writing)
    reader.join(PATIENCE)
    numbers = [one["number"] for one in found if "number" in one]
    assert numbers[:50] == list(range(50))  # those after them depend on when the pipe was full
    assert numbers == sorted(set(numbers))
    [said] = [one["message"] for one in found if "message" in one]
    assert said.startswith(f"{500 - len(numbers)} lines of the log were lost")


def test_a_log_that_is_closed_ends_nothing(pipe) -> None:
    os.close(pipe.reading)
    for _ in range(3):
        pipe.log.info("nobody hears")
    pipe.handler.flush()
    os.close(pipe.writing)
