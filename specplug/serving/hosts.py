"""Which names a server answers to, and which web pages may use it.

A page of any site can have a browser send requests to this machine. With a name of its own that
resolves to this machine (DNS rebinding) it reads the answers, too: the browser takes the server for
the page's own. Only the Host header tells, which a page cannot change; an IP address in it was not
looked up, so it is nobody's trick. A browser names the page's site in the Origin header of each
request that could do something.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address

_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9_.-]{1,255})(?::([0-9]{0,5}))?", re.A)
_ORIGIN = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_PORTS = {"http": 80, "https": 443}
ANY = "*"


def split_authority(text: str) -> tuple[str, int | None] | None:
    """A Host header's name, in lower case, and port; None if it is no name with or without port.

    An IPv6 address has no brackets in the result, and is written the one way that it is compared.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    name, port = found[1].lower(), found[2]
    if name.startswith("["):
        address = address_of(name[1:-1])
        if address is None or ":" not in name:
            return None
        name = str(address)
    return name.removesuffix(".") or ".", int(port) if port else None


def address_of(name: str) -> IPv4Address | IPv6Address | None:
    """The IP address that a name is, None if it is none; IPv4 within IPv6 is IPv4."""
    try:
        address = ip_address(name)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(name: str) -> bool:
    """Whether a name is this machine's own wherever it is looked up."""
    address = address_of(name)
    if address is not None:
        return address.is_loopback
    return name == "localhost" or name.endswith(".localhost")


def checked_name(entry: str) -> str:
    """An entry of ``allowed_hosts``, as it is compared: a name, ``*.name``, an IP address or ``*``.

    Raises:
        ValueError: it is something else.
    """
    if entry == ANY:
        return entry
    wild = "*." if entry.startswith("*.") else ""
    bare = entry.removeprefix(wild)
    if ":" in bare and not bare.startswith("["):
        bare = f"[{bare}]"
    found = split_authority(bare)
    if (
        found is None
        or found[1] is not None
        or bare.endswith(":")
        or found[0].startswith(".")
        or (wild and address_of(found[0]))
    ):
        raise ValueError(
            f"allowed_hosts {entry!r}: need a name such as api.example.com or *.example.com, an IP "
            "address, or * for any; no scheme and no port"
        )
    return wild + found[0]


def check_origin(entry: str) -> None:
    """Refuse an entry of ``cors_origins`` that no browser sends.

    Raises:
        ValueError: it is neither an origin nor ``*``.
    """
    if entry in (ANY, "null"):
        return
    scheme, _, authority = entry.partition("://")
    found = split_authority(authority)
    if (
        found is None
        or entry != entry.lower()
        or not _SCHEME.fullmatch(scheme)
        or authority.endswith(":")
        or (found[1] is not None and found[1] == _PORTS.get(scheme))
    ):
        raise ValueError(
            f"cors_origins {entry!r}: need an origin as browsers write it, such as "
            "https://chat.example.com or http://localhost:3000, in lower case, without a path and "
            "without the scheme's usual port; or * for any"
        )


def host_is_allowed(name: str, arrived_at: str | None, allowed: Collection[str]) -> bool:
    """Whether the server answers to a name.

    Args:
        name: of :func:`split_authority`.
        arrived_at: the server's own address, at which the connection came in; None: unknown.
        allowed: names that the operator gave, of :func:`checked_name`.
    """
    if ANY in allowed or name in allowed or is_loopback(name):
        return True
    parts = name.split(".")
    if any(f"*.{'.'.join(parts[first:])}" in allowed for first in range(1, len(parts))):
        return True
    own = None if arrived_at is None else address_of(arrived_at)
    return own is not None and not own.is_loopback and address_of(name) is not None


def origin_is_allowed(
    origin: str, host: tuple[str, int | None] | None, allowed: Collection[str]
) -> bool:
    """Whether a page may use the server: one of the server's own, or of an origin that is allowed.

    Args:
        origin: of the Origin header, such as ``"https://chat.example.com"``.
        host: name and port of the Host header.
        allowed: the operator's ``cors_origins``.
    """
    if ANY in allowed or origin in allowed:
        return True
    found = _ORIGIN.fullmatch(origin)
    if found is None or host is None:
        return False
    default = _PORTS[found[1].lower()]
    page = split_authority(found[2])
    return page is not None and (page[0], page[1] or default) == (host[0], host[1] or default)
