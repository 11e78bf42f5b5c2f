"""API keys: only their SHA-256 hashes are kept, and comparing takes as long for a wrong one."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping
from pathlib import Path

_LINE = re.compile(r"([A-Za-z0-9_.@-]{1,64}):([0-9a-f]{64})")


def hash_key(key: str) -> str:
    """What a key file holds of a key: its SHA-256 in hexadecimal."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyRing:
    """The keys that may ask, by the names of their owners.

    Args:
        hashes: from name to :func:`hash_key` of the key.
    """

    def __init__(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)

    @classmethod
    def parse(cls, text: str, source: str) -> KeyRing:
        """Read lines ``name:hash``; empty ones and those that begin with # are skipped.

        Args:
            text: the lines.
            source: where they are from, for messages.

        Raises:
            ValueError: another line, a name twice, or no key at all.
        """
        hashes: dict[str, str] = {}
        for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if not found:
                raise ValueError(
                    f"{source}, line {number}: need name:hash, as specplug hash-key prints it; a "
                    "name has letters, digits and _.@-"
                )
            if found[1] in hashes:
                raise ValueError(f"{source}, line {number}: there are two keys named {found[1]}")
            hashes[found[1]] = found[2]
        if not hashes:
            raise ValueError(f"{source} holds no key: make lines for it with specplug hash-key")
        return cls(hashes)

    def owner(self, key: str) -> str | None:
        """Whose key it is; None: nobody's."""
        hashed = hash_key(key)
        owner = None
        for name, known in self._hashes.items():  # all of them, whichever it is
            if hmac.compare_digest(hashed, known):
                owner = name
        return owner


def readable_by_others(path: Path) -> bool:
    """Whether anyone but the file's owner may read it."""
    return bool(path.stat().st_mode & 0o077)
