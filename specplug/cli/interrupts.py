"""Ctrl-C, SIGTERM and SIGHUP (the terminal is gone): what ends a command leaves nothing half-made
and is never shown as an error.

Libraries that are interrupted may turn the interruption into an exception of their own, so it is
remembered here that one came.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

from specplug.hangup import on_hangup

_received: int | None = None


def watch() -> None:
    """Have these signals end the command by an exception, and remember them."""
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells have it for jobs
        signal.signal(signal.SIGINT, _on_signal)
    on_hangup(_on_signal)


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _received
    _received = number
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    sys.exit(128 + number)


def exit_code() -> int | None:
    """That of a command that a signal ended, as shells have it; None: no signal came."""
    return None if _received is None else 128 + _received


def forget() -> None:
    """The command dealt with the signal and goes on."""
    global _received
    _received = None
