"""Who may come in. The server and the ingress of several replicas have the same door."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from specplug.serving.errors import ApiError
from specplug.serving.settings import ServerSettings

PUBLIC = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json"})
"""The only routes that GET and HEAD may reach without a key, exactly as they are written here."""


def route_path(scope: Scope) -> str:
    """The path that the application's routes are compared with.

    Under a mount, or with a server's ``--root-path``, ``scope["path"]`` has the prefix in it.
    """
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    rest = path.removeprefix(root)
    return rest if not rest or rest.startswith("/") else path


def is_public(scope: Scope) -> bool:
    """Whether a request needs no key: everything does that is not on the list."""
    return scope["method"] in ("GET", "HEAD") and route_path(scope) in PUBLIC


class Door:
    """Decides about a request by its scope alone, before anything of its body is read."""

    def __init__(self, settings: ServerSettings) -> None:
        self._keys = settings.keys

    def owner(self, scope: Scope, headers: Headers) -> str | None:
        """The name of the key's owner; None if there are no keys or the request needs none.

        Raises:
            ApiError: status 401: the key is missing or unknown.
        """
        if self._keys is None or is_public(scope):
            return None
        given = headers.getlist("authorization")
        scheme, _, key = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        owner = self._keys.owner(key.strip()) if scheme.lower() == "bearer" else None
        if owner is None:
            error = ApiError(
                401,
                "this server wants an API key it knows: Authorization: Bearer KEY",
                code="invalid_api_key",
            )
            error.headers = {"WWW-Authenticate": "Bearer"}
            raise error
        return owner


async def refuse_other(scope: Scope, receive: Receive, send: Send) -> None:
    """Turn away what is not HTTP: a WebSocket is closed before it is accepted.

    Raises:
        ValueError: the scope's type is not one of ASGI's that a server may send.
    """
    if scope["type"] != "websocket":
        raise ValueError(f"ASGI scope of type {scope['type']!r}: this application serves http")
    message: Message = await receive()
    if message["type"] == "websocket.connect":
        await send({"type": "websocket.close", "code": 1008, "reason": "HTTP only"})
