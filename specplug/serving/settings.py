"""What the operator decides."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, fields
from pathlib import Path

from specplug.arguments import check_types
from specplug.bundle import MANIFEST
from specplug.serving.hosts import check_origin, checked_name
from specplug.serving.keys import KeyRing


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Of one application; times are in seconds.

    Raises:
        ValueError: a limit that nothing could keep to.
    """

    model_name: str = "specplug"
    """What clients call the model."""
    fingerprint: str | None = None
    """``system_fingerprint`` of answers: changes when their text may."""
    keys: KeyRing | None = None
    """Who may ask; None: everybody, as one tenant."""
    max_waiting: int = 64
    """Answers that may wait for a place in the batch; requests are refused with status 429 while so
    many do, so that the last one to be taken may bring some more. A key without any answer under
    way is not refused for it."""
    max_per_key: int | None = None
    """Answers of one key, running and waiting, at a time: its requests' prompts times ``n``. None:
    half of what can run and wait, rounded up, where there are keys; else as many as there is room
    for."""
    max_choices: int = 16
    """Answers that one request may ask for: its prompts times ``n``."""
    max_tokens: int | None = None
    """New tokens that one answer may ask for; None: up to the model's context."""
    max_prompt_tokens: int | None = None
    """None: up to the model's context."""
    max_connections: int = 512
    """Open at a time. For another one, the connection that has waited longest for its client is
    closed, of the address with most of them; while all are being answered, it is refused with
    status 503. Only :class:`specplug.serving.server.Server` heeds this and the two times below."""
    header_timeout: float = 10.0
    """For a request's head to arrive, from its first byte, or from the connection's begin."""
    idle_timeout: float = 65.0
    """Between two requests of a connection. Longer than clients keep unused connections, so that
    they close first."""
    max_body_bytes: int = 1 << 20
    max_held_bytes: int = 128 << 20
    """Of requests that are being answered, bodies and headers, all together, at least two of the
    longest; one key may have half. More are refused with status 503."""
    body_timeout: float = 30.0
    """For a request's body to arrive."""
    request_timeout: float = 600.0
    """From a request's arrival to the last token of its answers."""
    send_timeout: float = 30.0
    """For a reader to take what is sent to it, before it is given up."""
    keep_alive_comment: float = 15.0
    """Without an event of a stream, its first included, before a comment is sent, since proxies
    close silent connections. What fails before that has a status of its own."""
    stream_buffer: int = 1024
    """Tokens that may wait for a reader, before it is given up."""
    step_timeout: float = 60.0
    """For one step of the engine, after which it counts as hung: ``/health`` and ``/ready`` say so
    and requests are refused with status 503, until the step ends."""
    shutdown_timeout: float = 60.0
    """For running and waiting answers to end, when the server is to stop."""
    cors_origins: tuple[str, ...] = ()
    """Web origins whose pages may ask; ``"*"``: all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names, beside ``localhost`` and loopback addresses, that the server answers to: ``name``,
    ``*.name``, an IP address, ``"*"``: any. Without keys this is always checked, with keys only if
    there are any here. At an address other than loopback, any IP address is answered to."""
    log_prompts: bool = False
    """Write prompts and answers into the log."""
    otlp_endpoint: str | None = None
    """Where OpenTelemetry traces go: base address of a collector that takes OTLP over HTTP. None:
    where the standard variables say; nowhere without them."""

    def __post_init__(self) -> None:
        check_types(self)
        if not self.model_name.strip() or not self.model_name.isprintable():
            raise ValueError(f"model_name {self.model_name!r}: need a name of printable characters")
        if self.otlp_endpoint is not None and not _URL.fullmatch(self.otlp_endpoint):
            raise ValueError(
                f"otlp_endpoint {self.otlp_endpoint!r}: need a URL such as http://localhost:4318"
            )
        for origin in self.cors_origins:
            check_origin(origin)
        object.__setattr__(self, "allowed_hosts", tuple(map(checked_name, self.allowed_hosts)))
        for field in fields(self):
            value, least = getattr(self, field.name), _LEAST.get(field.name, 1e-3)
            if isinstance(value, int | float) and not value >= least:
                raise ValueError(f"{field.name} {value}: need at least {least}")
            if isinstance(value, float) and value > _LONGEST:
                raise ValueError(f"{field.name} {value}: need at most {_LONGEST:.0f} seconds")


_URL = re.compile(r"https?://[^\s/?#]+[!-~]*")
_LONGEST = 1e6  # seconds; the system's own clocks of connections end at twice as many
_LEAST = {
    "max_waiting": 0,
    "max_per_key": 1,
    "max_choices": 1,
    "max_tokens": 1,
    "max_prompt_tokens": 1,
    "max_connections": 1,
    "max_body_bytes": 1,
    "max_held_bytes": 1,
    "stream_buffer": 1,
    "shutdown_timeout": 0,
    "log_prompts": 0,
}


def default_model_name(bundle: Path) -> str:
    """What clients call the model of a bundle if nobody says: as its folder is called."""
    return bundle.resolve().name.removesuffix(".bundle")


def fingerprint(bundle: Path) -> str | None:
    """Another one for another bundle; None: it has no manifest, which opening it says better."""
    manifest = bundle / MANIFEST
    if not manifest.is_file():
        return None
    return f"sp_{hashlib.sha256(manifest.read_bytes()).hexdigest()[:12]}"
