"""The C++ runtime as the tests reach it: a program built from the installed tree, in JSON lines."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from specplug import History, SamplingParams, SpeculativeDecoder
from specplug.bundle import Bundle

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "native"
TOOL = BUILD / "tool" / "specplug_tool"

OK, INVALID, BUNDLE, ENGINE, CONTEXT, MEMORY, UNSUPPORTED, BUSY, INTERNAL = range(9)
"""Statuses, as specplug.h numbers them."""

_MISSING = 77


class NativeError(Exception):
    """What the library says of a call that failed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"status {status}: {message}")
        self.status, self.message = status, message


class MissingToolError(Exception):
    """Something that a build needs is not on this machine."""


def build(*kinds: str) -> None:
    """Run ``scripts/native``.

    Raises:
        MissingToolError: as its last line says.
    """
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:  # tests may run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = subprocess.run(
            [ROOT / "scripts" / "native", *kinds], capture_output=True, text=True, check=False
        )
    if done.returncode == _MISSING:
        raise MissingToolError(done.stderr.strip().rpartition("\n")[2])
    assert done.returncode == 0, done.stderr[-4000:]


class Native:
    """A process over one opened bundle.

    Args:
        bundle: its path; None: opened by :meth:`ask`.
        program: that speaks the tool's language, with its arguments.
        environment: variables beside this process's.
        options: of the model.
    """

    def __init__(
        self,
        bundle: Path | None = None,
        *,
        program: Sequence[str | Path] = (TOOL,),
        environment: Mapping[str, str] | None = None,
        **options: Any,
    ) -> None:
        self._process = subprocess.Popen(
            list(map(str, program)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
        )
        self.seconds = 0.0
        """That the latest call took, as the program measured it."""
        if bundle is not None:
            self.info = self.ask("open", path=str(bundle), **options)

    def ask(self, op: str, **request: Any) -> Any:
        """One call.

        Raises:
            NativeError: the library gave a status.
        """
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"op": op, **request}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the program died with {self._process.wait()}"
        reply = json.loads(line)
        self.seconds = reply["seconds"]
        if "error" in reply:
            raise NativeError(reply["status"], reply["error"])
        return reply["result"]

    def close(self) -> int:
        """End the process; its exit code."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        code = self._process.wait(timeout=60)
        self._process.stdout.close()
        return code

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


SAMPLED: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0.8, "top_p": 0.9},
    {"temperature": 1.0, "top_k": 12, "min_p": 0.02},
    {"temperature": 1.3, "typical_p": 0.8},
    {"temperature": 1.0},
    {"repetition_penalty": 1.3, "no_repeat_ngram": 3},
    {"temperature": 0.9, "presence_penalty": 0.6, "frequency_penalty": 0.2, "top_k": 40},
    {"temperature": 0.7, "banned_tokens": [3, 50, 51, 52], "logit_bias": {7: 4.0, 9: -3.5}},
    {"forced_tokens": {0: 5, 3: 6}, "temperature": 0.5, "repetition_penalty": 0.8},
)
"""Sampling of every kind, seeds aside."""

DRAFTERS = ("none", "ngram", "suffix", "recycle", "predicted", "auto")


def random_request(
    random: np.random.Generator, vocab_size: int, drafters: Sequence[str]
) -> dict[str, Any]:
    """A generation whose prompt repeats itself, with options of every kind."""
    piece = random.integers(0, vocab_size, size=random.integers(2, 9)).tolist()
    rest = random.integers(0, vocab_size, size=random.integers(1, 12)).tolist()
    prompt = (piece * int(random.integers(1, 4)) + rest + piece)[: int(random.integers(1, 40))]
    drafter, draft_tokens = str(random.choice(drafters)), int(random.choice([0, 1, 2, 5, 9, 17]))
    return {
        "prompt": prompt,
        "drafter": drafter,
        "draft_tokens": 0 if drafter == "none" else draft_tokens,
        "max_tokens": int(random.integers(1, 40)),
        "seed": int(random.integers(0, 2**63)),
        "sample": int(random.integers(0, 3)),
        "prediction": random.integers(0, vocab_size, size=int(random.integers(0, 20))).tolist(),
        **SAMPLED[int(random.integers(len(SAMPLED)))],
    }


_GENERATION = ("max_tokens", "sample", "prediction", "tenant", "stop")


def in_python(
    bundle: Path, request: Mapping[str, Any], history: History | None = None
) -> dict[str, Any]:
    """What the Python package makes of a request of the tool, in the tool's words."""
    options = dict(request)
    prompt = options.pop("prompt")
    drafter, draft_tokens = options.pop("drafter"), options.pop("draft_tokens")
    generation = {name: options.pop(name) for name in _GENERATION if name in options}
    text = options.pop("text", False)
    with SpeculativeDecoder.from_bundle(
        bundle,
        drafter=drafter,
        draft_tokens="auto" if draft_tokens < 0 else draft_tokens,
        history=History(0) if history is None else history,
        inexact_trees=options.pop("inexact_trees", False),
    ) as decoder:
        result = decoder.generate(prompt, sampling=SamplingParams(**options), **generation)
    return {
        "tokens": list(result.token_ids),
        "text": result.text if text else "",
        "finish_reason": result.finish_reason,
        "drafted_per_round": result.stats.drafted_per_round,
        "accepted_per_round": result.stats.accepted_per_round,
    }


def in_native(native: Native, request: Mapping[str, Any]) -> dict[str, Any]:
    """The same of the C++ library, by a new decoder."""
    found = native.ask("generate", fresh=True, **request)
    stats = found["stats"]
    return {"tokens": found["tokens"], "text": found["text"]} | {
        name: stats[name] for name in ("finish_reason", "drafted_per_round", "accepted_per_round")
    }


def drafters_of(bundle: Path) -> tuple[str, ...]:
    """Names of all drafters that a bundle has."""
    draft = Bundle.open(bundle).manifest.draft
    if draft is None:
        return DRAFTERS
    return (*DRAFTERS, "draft") if draft.layers is None else (*DRAFTERS, "draft", "self")
