"""The log: one JSON object a line on standard error, one line a request."""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from dataclasses import dataclass, field
from typing import Any

MOST_LINES = 4096
"""Lines of the log that may wait to be written."""
_FLUSHED = 2.0  # seconds
_STANDARD_ERROR = 2

requests_log = logging.getLogger("specplug.serving.requests")


@dataclass(slots=True, kw_only=True)
class Record:
    """What is known of a request in the end; times in seconds."""

    id: str
    method: str
    path: str
    status: int = 0
    outcome: str = "ok"
    """``ok``, ``refused``, ``timeout``, ``client_gone``, ``slow_reader``, ``given_up``,
    ``failed``."""
    key: str | None = None
    """Name of the API key's owner."""
    began: float = field(default_factory=time.time)
    started: float = field(default_factory=time.perf_counter)
    first_token: float | None = None
    """When, as ``started``."""
    seconds: float = 0.0
    answer: dict[str, Any] = field(default_factory=dict)
    """Tokens, acceptance and the like, once they are known."""
    text: dict[str, Any] = field(default_factory=dict)
    """Prompt and answer; only if the operator wants them."""

    def write(self) -> None:
        """The line of this request."""
        fields: dict[str, Any] = {
            "event": "request",
            "id": self.id,
            "method": self.method,
            "path": self.path,
            "status": self.status,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 4),
        }
        if self.key is not None:
            fields["key"] = self.key
        if self.first_token is not None:
            fields["first_token_seconds"] = round(self.first_token - self.started, 4)
        requests_log.info("request", extra={"fields": fields | self.answer | self.text})


class JsonFormatter(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """Time (UTC), level, and the record's fields or message."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
        }
        fields = getattr(record, "fields", None)
        line |= fields or {"event": "message", "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line)


class Lines(logging.Handler):
    """Writes records on a thread of its own: whoever logs waits neither for a long line to be made
    nor for one that nobody reads. Lines beyond ``MOST_LINES`` are lost, and a line says how many.

    Args:
        file: descriptor that is written to; not a stream, whose lock the thread could hold when
            the interpreter ends.
    """

    def __init__(self, file: int) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self._file = file
        # Unlike a bounded queue, it may be put to in a signal's handler at any moment.
        self._waiting: queue.SimpleQueue[logging.LogRecord | threading.Event] = queue.SimpleQueue()
        self._lost = 0
        threading.Thread(target=self._run, name="specplug-log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have a line written."""
        if self._waiting.qsize() < MOST_LINES:
            self._waiting.put(record)
        else:
            self._lost += 1

    def flush(self) -> None:
        """Wait until what was logged is written, for two seconds at most."""
        written = threading.Event()
        self._waiting.put(written)
        written.wait(_FLUSHED)

    def _run(self) -> None:
        while True:
            next_one = self._waiting.get()
            if isinstance(next_one, threading.Event):
                next_one.set()
                continue
            self._write(next_one)
            if self._lost and self._waiting.qsize() < MOST_LINES // 2:
                lost, self._lost = self._lost, 0
                why = f"{lost} lines of the log were lost: nobody read them in time"
                self._write(logging.makeLogRecord({"levelname": "WARNING", "msg": why}))

    def _write(self, record: logging.LogRecord) -> None:
        try:
            rest = memoryview(self.format(record).encode() + b"\n")
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except Exception:
            self._lost += 1  # said once something can be written again


def _is_news(record: logging.LogRecord) -> bool:
    """Not so: what uvicorn calls an error when a reader is given up. The request's line has it."""
    return record.msg != "ASGI callable returned without completing response."


def set_up() -> None:
    """Have everything of this process logged so."""
    logging.basicConfig(handlers=[Lines(_STANDARD_ERROR)], level=logging.INFO, force=True)
    logging.getLogger("uvicorn.access").disabled = True  # requests_log has more
    logging.getLogger("uvicorn.error").addFilter(_is_news)
