"""Ctrl-C, SIGTERM and SIGHUP (the terminal is gone): what ends a command leaves nothing half-made
and is never shown as an error.

Libraries that are interrupted may turn the interruption into an exception of their own, so it is
remembered here that one came.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType

_received: int | None = None
_HANGUP: int | None = getattr(signal, "SIGHUP", None)  # Windows has none


def watch() -> None:
    """Have these signals end the command by an exception, and remember them."""
    signal.signal(signal.SIGTERM, _on_signal)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as shells have it for jobs
        signal.signal(signal.SIGINT, _on_signal)
    if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(_HANGUP, _on_signal)


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
