"""Grammars are compiled in a process of their own first, which can be killed.

The library bounds most of what compiling a grammar costs, but not all of it: twenty patterns with
counted repetitions in one ``allOf`` never end, and a call of the library cannot be interrupted.
"""

from __future__ import annotations

import json
import os
import queue
import selectors
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from specplug import grammar_rehearser
from specplug.grammar import LIMITS
from specplug.text import Tokenizer

SECONDS = 2.0
"""Of CPU that compiling a grammar and finding its first mask may take; real ones take a tenth."""
MEBIBYTES = 1024
"""Of memory that this may take."""
_PATIENCE = 30.0  # seconds for an answer on a machine that is busy with other things
_PROCESSES = 2


class Rehearsals:
    """Compiles grammars where that does no harm; the processes start when they are needed.

    Args:
        tokenizer: of the target.
        vocab_size: V of the target.
        seconds: of CPU that a grammar may take.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, seconds: float = SECONDS) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._seconds = seconds
        self._closed = threading.Event()
        self._processes: queue.LifoQueue[subprocess.Popen[bytes] | None] = queue.LifoQueue()
        for _ in range(_PROCESSES):
            self._processes.put(None)

    def __call__(self, grammar: str) -> None:
        """Compile a grammar, as the library takes it, and forget it; from any thread.

        A grammar that is wrong passes: compiling it again tells why.

        Raises:
            ValueError: it takes too long or too much memory.
        """
        process = self._processes.get()
        try:
            if process is not None and process.poll() is not None:  # somebody ended it
                _end(process)
                process = None
            if process is None:
                process = self._started()
            if not _answers(process, json.dumps(grammar)):
                _end(process)
                process = None
                raise ValueError(
                    f"compiling it takes more than {self._seconds:g} seconds or {MEBIBYTES} MiB: "
                    "make it smaller or simpler"
                )
        finally:
            if self._closed.is_set() and process is not None:
                _end(process)
                process = None
            self._processes.put(process)

    def close(self) -> None:
        """End the processes; one that is in use ends with its call."""
        self._closed.set()
        for _ in range(_PROCESSES):
            try:
                process = self._processes.get_nowait()
            except queue.Empty:
                return
            if process is not None:
                _end(process)

    def _started(self) -> subprocess.Popen[bytes]:
        source = Path(grammar_rehearser.__file__).read_text(encoding="utf-8")
        process = subprocess.Popen(
            [sys.executable, "-c", source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        if not _answers(process, self._setup()):
            _end(process)
            raise OSError("the process that tries grammars out did not start")
        return process

    def _setup(self) -> str:
        return json.dumps(
            {
                "tokenizer": self._tokenizer.backend.to_str(),
                "vocab_size": self._vocab_size,
                "stop_token_ids": sorted(self._tokenizer.stop_token_ids) or [0],
                "limits": LIMITS,
                "seconds": self._seconds,
                "mebibytes": MEBIBYTES,
            }
        )


def _answers(process: subprocess.Popen[bytes], line: str) -> bool:
    """Whether a process reads a line and answers it."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
    except OSError:
        return False
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        if not selector.select(_PATIENCE):
            return False
    return bool(os.read(process.stdout.fileno(), 1))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    with suppress(OSError), process:  # its pipes are closed, and it is waited for
        pass
    process.wait()
