"""The log: one JSON object a line on standard error, one line a request."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field
from typing import Any

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


def set_up() -> None:
    """Have everything of this process logged so."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    logging.getLogger("uvicorn.access").disabled = True  # requests_log has more
