"""Where the ``specplug`` command begins: an interrupt ends it quietly from its first import on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def main() -> None:
    """Import the command, which takes a moment, and run it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by a shell
        signal.signal(signal.SIGINT, _leave)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by who started the process
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (for as long as it runs)
    from specplug.cli import main as command

    command()


def _leave(number: int, frame: FrameType | None) -> None:
    """End the process at once: nothing was begun, and an import cannot be left half done."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)
