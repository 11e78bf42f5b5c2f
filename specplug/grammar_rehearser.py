"""The process that grammars are tried out in; it runs this file's text, without specplug.

It reads lines of JSON: the setup, then grammars. It answers each with a byte, or dies.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def _bound_memory(mebibytes: int) -> None:
    """Let an allocation fail that would take this process so far beyond what it has now."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[0])
    except (ImportError, OSError):
        return  # no such bound on this system
    most = pages * resource.getpagesize() + (mebibytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _bound_time(seconds: float) -> None:
    """End this process after so much more CPU time; 0: do not."""
    import signal

    if hasattr(signal, "setitimer"):  # else whoever waits for the answer ends it
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _answer() -> None:
    os.write(1, b".")


def main() -> None:
    """Answer until the input ends."""
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

    setup: dict[str, Any] = json.loads(sys.stdin.readline())
    tokens = LLTokenizer(
        setup["tokenizer"], n_vocab=setup["vocab_size"], eos_token=setup["stop_token_ids"]
    )
    limits = LLParserLimits(**setup["limits"])
    if hasattr(os, "nice"):
        os.nice(5)
    _bound_memory(setup["mebibytes"])
    _answer()
    for line in sys.stdin:
        _bound_time(setup["seconds"])
        matcher = LLMatcher(tokens, json.loads(line), log_level=0, limits=limits)
        if not matcher.is_error():
            matcher.compute_bitmask()
        del matcher
        _bound_time(0)
        _answer()


if __name__ == "__main__":
    main()
