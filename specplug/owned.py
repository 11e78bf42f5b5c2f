"""What was opened is closed if what it was opened for fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

_log = logging.getLogger(__name__)


class Closable(Protocol):
    """An engine, a drafter, a decoder or a device."""

    def close(self) -> None:
        """Release what it holds."""
        ...


AnyClosable = TypeVar("AnyClosable", bound=Closable)


class Opened:
    """Takes note of what is opened, in its order."""

    def __init__(self) -> None:
        self._all: list[Closable] = []

    def __call__(self, one: AnyClosable) -> AnyClosable:
        """Give back what is closed if the block fails."""
        self._all.append(one)
        return one

    def close(self) -> None:
        """Close all of it, the last one first; one that cannot be closed keeps no other open."""
        while self._all:
            one = self._all.pop()
            try:
                one.close()
            except Exception as error:
                _log.warning("%s could not be closed: %s", type(one).__name__, error)


@contextmanager
def closing_on_failure() -> Iterator[Opened]:
    """Close what the block opened if it does not end well, whatever ends it."""
    opened = Opened()
    try:
        yield opened
    except BaseException:
        opened.close()
        raise
