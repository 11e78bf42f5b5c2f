"""SIGHUP, which says that the terminal is gone."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

_NUMBER: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


def on_hangup(handle: Callable[[int, FrameType | None], object]) -> None:
    """Have SIGHUP handled, unless it is ignored, as under nohup."""
    if _NUMBER is not None and signal.getsignal(_NUMBER) is not signal.SIG_IGN:
        signal.signal(_NUMBER, handle)
