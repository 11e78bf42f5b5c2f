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
    def read(cls, path: Path) -> KeyRing:
        """Read a file of lines ``name:hash``; empty ones and those that begin with # are skipped.

        Raises:
            ValueError: another line, a name twice, or no key at all.
            OSError: the file cannot be read.
        """
        hashes: dict[str, str] = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line)
            if not found:
                raise ValueError(
                    f"{path}, line {number}: need name:hash, as specplug hash-key writes it"
                )
            if found[1] in hashes:
                raise ValueError(f"{path}, line {number}: there are two keys named {found[1]}")
            hashes[found[1]] = found[2]
        if not hashes:
            raise ValueError(f"{path} holds no key: add one with specplug hash-key NAME >> {path}")
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
