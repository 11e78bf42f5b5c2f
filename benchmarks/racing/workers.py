"""A system's running process: started, asked, measured, stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any, Self

from racing.systems import System


class WorkerError(Exception):
    """A worker ended, or answered something else than asked."""


class Worker:
    """A system's worker process, ready when constructed.

    Args:
        system: what to run.
        threads: that it may use.
        stop: token ids that end a text.
        log: takes what the process says besides its answers.

    Raises:
        WorkerError: it could not start; the log says why.
    """

    def __init__(self, system: System, *, threads: int, stop: list[int], log: Path) -> None:
        self.system = system
        self._log = log
        with log.open("a", encoding="utf-8") as stderr:
            self._process = subprocess.Popen(
                system.command(threads=threads, stop=stop),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        self.versions = self._read()

    def generate(self, token_ids: list[int], max_tokens: int) -> dict[str, Any]:
        """Decode a prompt: ``token_ids``, ``first_token_seconds``, ``seconds``."""
        return self._ask({"op": "generate", "token_ids": token_ids, "max_tokens": max_tokens})

    def write_logits(self, token_ids: list[int], path: Path) -> None:
        """Leave the logits of every position in an .npy file, f32[n, V]."""
        self._ask({"op": "logits", "token_ids": token_ids, "path": str(path)})

    def memory(self) -> dict[str, int]:
        """Bytes held now (the proportional set size) and at most so far (resident)."""
        proc = Path("/proc") / str(self._process.pid)
        return {
            "pss": _kilobytes(proc / "smaps_rollup", "Pss:") * 1024,
            "peak_rss": _kilobytes(proc / "status", "VmHWM:") * 1024,
        }

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin
        try:
            print(json.dumps(request), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise self._ended() from None
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return dict(json.loads(line))

    def _ended(self) -> WorkerError:
        self.close()
        return WorkerError(f"{self.system.name}: its worker ended; see {self._log}")


def _kilobytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise WorkerError(f"{path} has no {field}")
