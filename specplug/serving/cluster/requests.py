"""A request on its way from the ingress to a replica."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

from specplug.serving.bodies import BodyError, read_json
from specplug.serving.requests import RANDOM_SEED

GENERATING = ("/v1/chat/completions", "/v1/completions")
"""Paths whose answers are generated, and so are worth a replica that knows the prompt's prefix."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwarded:
    """An HTTP request, whole, with what is needed to choose its replica."""

    method: str
    path: str
    """Within the application, without :attr:`root_path`."""
    root_path: str = ""
    """What is before it where the client asked, such as Ray's ``route_prefix``."""
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    """Names in lower case, as ASGI has them."""
    body: bytes = b""
    prefix: bytes | None = None
    """What requests that could share a cached prefix have in common; None: nothing to share."""
    avoid: frozenset[str] = frozenset()
    """Replicas that failed over this request: asked again only if there is no other."""

    def header(self, name: bytes) -> bytes:
        """The header's value; empty if there is none."""
        return next((value for key, value in self.headers if key == name), b"")


def prepared(request: Forwarded, *, prefix_characters: int) -> Forwarded:
    """The request with a seed of its own if it has none, and with the key of its prefix.

    Texts depend on the seed alone, so with the seed in the request a second replica gives the
    same answer as the first. A body that is no JSON object, or has a field twice, is left for the
    replica to refuse, and so is one of too many parts to be read here.
    """
    if request.method != "POST" or request.path not in GENERATING:
        return request
    try:
        body = read_json(request.body)
    except BodyError:
        return request
    if not isinstance(body, dict):
        return request
    tenant = request.header(b"authorization")
    request = replace(request, prefix=shared_prefix(body, tenant, prefix_characters))
    seed = body.get("seed")
    if not (seed is None or (type(seed) is int and seed == RANDOM_SEED)):
        return request
    content = _with_seed(request.body, body, secrets.randbits(63))
    kept = tuple(pair for pair in request.headers if pair[0] != b"content-length")
    length = (b"content-length", str(len(content)).encode())
    return replace(request, body=content, headers=(*kept, length))


def _with_seed(content: bytes, body: dict[str, Any], seed: int) -> bytes:
    """An object's JSON with a seed: as it is, with one more field, where that is simple."""
    start = content.lstrip(b" \t\r\n")
    if "seed" in body or not start.startswith(b"{") or b"\0" in start[:4]:  # not UTF-8
        return json.dumps(body | {"seed": seed}).encode()
    return b'{"seed": %d%s' % (seed, b", " * bool(body) + start[1:])


def shared_prefix(body: dict[str, Any], tenant: bytes, characters: int) -> bytes | None:
    """A digest of the tenant and of the prompt's first ``characters`` (token ids count as one).

    None if the prompt is shorter: caches are shared in whole pieces, and it fills none.
    """
    parts: list[str] = []
    missing = characters
    for text in _prompt_texts(body):
        parts.append(text[:missing])
        missing -= len(parts[-1])
        if not missing:
            content = "".join(parts).encode("utf-8", "surrogatepass")
            return blake2b(content, key=blake2b(tenant).digest(), digest_size=16).digest()
    return None


def _prompt_texts(body: dict[str, Any]) -> Iterator[str]:
    """The prompt's text in pieces, whatever shape it has; of several prompts the first."""
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                content = message.get("content")
                yield content if isinstance(content, str) else json.dumps(content)
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        prompt = prompt[0]
    if isinstance(prompt, str):
        yield prompt
    elif isinstance(prompt, list):
        yield from (chr(token % 0xD800) for token in prompt if isinstance(token, int))
