"""Who may come in. The server and the ingress of several replicas have the same door."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from specplug.serving.errors import ApiError
from specplug.serving.hosts import ANY, host_is_allowed, origin_is_allowed, split_authority
from specplug.serving.settings import ServerSettings

PUBLIC = frozenset({"/", "/health", "/ready", "/metrics", "/openapi.json"})
"""The only routes that GET and HEAD may reach without a key, exactly as they are written here."""

_SHOWN = 100  # characters of an origin


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
        self._hosts = settings.allowed_hosts
        self._origins = settings.cors_origins

    def admit(self, scope: Scope, headers: Headers) -> str | None:
        """The name of the key's owner; None if there are no keys or the request needs none.

        Names of the server and origins of pages are checked where nobody needs a key: a page has
        none, so where there are keys names are checked only if the operator gave some.

        Raises:
            ApiError: status 400 or 421 for a Host, 403 for an Origin, 401 for a key.
        """
        if self._keys is None or self._hosts:
            self._check_host(scope, headers)
        if self._keys is None:
            self._check_origin(headers)
            return None
        return self._owner(scope, headers)

    def _check_host(self, scope: Scope, headers: Headers) -> None:
        if ANY in self._hosts:
            return
        given = headers.getlist("host")
        found = split_authority(given[0]) if len(given) == 1 else None
        if found is None:
            raise ApiError(
                400,
                "the request needs one Host header with a name, and a port if it has one",
                code="invalid_host",
            )
        arrived_at = (scope.get("server") or (None,))[0]
        if not host_is_allowed(found[0], arrived_at, self._hosts):
            raise ApiError(
                421,
                f"this server does not answer to the name {found[0]!r}: its operator can allow it "
                f"with --allowed-host {found[0]}",
                code="host_not_allowed",
            )

    def _check_origin(self, headers: Headers) -> None:
        given = headers.getlist("origin")
        if not given:
            return
        host = split_authority(headers.get("host", ""))
        if len(given) > 1 or not origin_is_allowed(given[0], host, self._origins):
            raise ApiError(
                403,
                f"pages of {given[0][:_SHOWN]!r} may not use this server: its operator can allow "
                "them with --cors-origin",
                code="origin_not_allowed",
            )

    def _owner(self, scope: Scope, headers: Headers) -> str | None:
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
