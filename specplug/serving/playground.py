"""The page at ``/``: one file, with leave for what is in it and for nothing else."""

from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.resources import files

from starlette.responses import Response

from specplug.serving.errors import ApiError

_INLINE = re.compile(r"<(script|style)\b[^>]*>(.*?)</\1>", re.DOTALL)


@cache
def _content() -> tuple[bytes, str] | None:
    """The page, and its Content-Security-Policy."""
    file = files("specplug.serving") / "page.html"
    if not file.is_file():
        return None
    text = file.read_text(encoding="utf-8")
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for kind, content in _INLINE.findall(text):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        hashes[kind].append(f"'sha256-{digest}'")
    policy = [
        "default-src 'none'",
        *(f"{kind}-src {' '.join(found)}" for kind, found in hashes.items() if found),
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    return text.encode(), "; ".join(policy)


def page() -> Response:
    """The page.

    Raises:
        ApiError: status 404: it was left out.
    """
    found = _content()
    if found is None:
        raise ApiError(404, "there is no page here: the API begins at /v1/")
    content, policy = found
    headers = {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }
    return Response(content, headers=headers, media_type="text/html")
