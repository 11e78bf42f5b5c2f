"""Who uses an engine or a drafter: one generation, or one batch, at a time."""

from __future__ import annotations

import threading
import weakref

from specplug.types import DecoderBusyError

_held: weakref.WeakValueDictionary[int, Claim] = weakref.WeakValueDictionary()
_lock = threading.RLock()  # a collected generator may release its claim inside another's


class Claim:
    """The sole use of some engines and drafters, until :meth:`release` or until nobody has it.

    Args:
        parts: what is used; its cache, or what it notes of a text, is one sequence's.

    Raises:
        DecoderBusyError: somebody else uses one of them.
    """

    def __init__(self, *parts: object) -> None:
        with _lock:
            for part in parts:
                if id(part) in _held:
                    raise DecoderBusyError(
                        f"this decoder's {type(part).__name__} is in the middle of another "
                        "generation, and it has one cache: exhaust or close() that one's stream "
                        "first, or use BatchDecoder for many at once"
                    )
            self._parts = parts
            for part in parts:
                _held[id(part)] = self

    def release(self) -> None:
        """Others may use them; a second time does nothing."""
        with _lock:
            for part in self._parts:
                if _held.get(id(part)) is self:
                    del _held[id(part)]
            self._parts = ()
