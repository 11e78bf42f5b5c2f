"""What every worker of the race shares: its arguments, and the line protocol it answers in.

A worker is one system, loaded once, in a process and environment of its own. Its first line names
the versions of its packages; then every line it reads is a request, answered by one line:

    {"op": "generate", "token_ids": [...], "max_tokens": n}
    -> {"token_ids": [...], "first_token_seconds": s, "seconds": s}
    {"op": "logits", "token_ids": [...], "path": "rows.npy"}
    -> {"path": "rows.npy"}

Times run from the request, prompt included. Decoding is greedy and ends with the first stop token,
which is part of the answer. Logits are f32[n, V], row i what follows token i, computed as decoding
computes them: one token a call. Only the standard library and numpy are needed here.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, TextIO

import numpy as np

Delivered = Callable[..., None]
"""Called without an argument when the first token is there, and with any later one; or once with
the seconds that the first took, where the peer counts them itself."""
Generate = Callable[[list[int], int, Delivered], Sequence[int]]
"""``(token_ids, max_tokens, delivered) -> new token ids``."""
Next = Callable[[int, int], np.ndarray]
"""``(token, past) -> f32[V]``: feeds one token after ``past`` others and gives its logits."""


def arguments(description: str | None) -> argparse.Namespace:
    """What the race tells a worker; from here on, only its answers reach standard output."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("model", help="a file or folder, as the peer takes it")
    parser.add_argument("--drafter", default="none", help="none, or a kind that the worker knows")
    parser.add_argument("--draft", help="the draft model, for the drafter of that name")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--stop", type=int, nargs="+", default=[], help="token ids that end a text")
    parser.add_argument("--context", type=int, default=4096, help="tokens at most, new ones too")
    asked = parser.parse_args()
    asked.answers = _own_output()
    return asked


def serve(
    asked: argparse.Namespace,
    packages: Sequence[str],
    generate: Generate,
    next_logits: Callable[[], Next],
) -> None:
    """Answer requests until standard input ends.

    Args:
        asked: :func:`arguments`.
        packages: distributions whose versions describe the system.
        generate: decodes greedily.
        next_logits: starts an empty sequence for :data:`Next`.
    """
    out = asked.answers
    _answer(out, {name: version(name) for name in packages})
    for line in sys.stdin:
        request = json.loads(line)
        if request["op"] == "generate":
            _answer(out, _timed(generate, request["token_ids"], request["max_tokens"]))
        else:
            feed = next_logits()
            rows = [
                np.array(feed(token, past), dtype=np.float32).reshape(-1)
                for past, token in enumerate(request["token_ids"])
            ]
            np.save(request["path"], np.stack(rows))
            _answer(out, {"path": request["path"]})


def _own_output() -> TextIO:
    """The answers' stream; whatever libraries print from here on goes to standard error."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return out


def _answer(out: TextIO, content: dict[str, Any]) -> None:
    print(json.dumps(content), file=out, flush=True)


def _timed(generate: Generate, token_ids: list[int], max_tokens: int) -> dict[str, Any]:
    first: list[float] = []

    def delivered(seconds: float | None = None) -> None:
        if not first:
            first.append(time.perf_counter() - started if seconds is None else seconds)

    started = time.perf_counter()
    new = generate(token_ids, max_tokens, delivered)
    ended = time.perf_counter()
    return {
        "token_ids": [int(token) for token in new],
        "first_token_seconds": first[0],
        "seconds": ended - started,
    }
