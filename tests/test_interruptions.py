"""Exports that do not reach their end: killed, cancelled, out of disk; nothing is left of them."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from specplug import Bundle
from specplug.types import BundleError

PAUSES = (0.0, 0.1, 0.3, 0.8)  # seconds after the first file is made


def start(source: Path, bundle: Path, *options: str, **process: object) -> subprocess.Popen[str]:
    # Shells start background jobs, this run perhaps, with SIGINT ignored; a user's is not.
    process.setdefault("preexec_fn", lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    return subprocess.Popen(
        [sys.executable, "-m", "specplug", "export", str(source), "-o", str(bundle), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"COLUMNS": "400"},
        **process,
    )


def signalled(source: Path, bundle: Path, number: int) -> Iterator[tuple[int, str]]:
    """Exit code and stderr of exports that a signal ended, each a little later."""
    for pause in PAUSES:
        process = start(source, bundle, "--precision", "w8a8", "--self-draft", "int4", "--force")
        while process.poll() is None and not list(bundle.parent.glob(".*.partial-*")):
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(number)
        told = process.communicate()[1]
        if process.returncode:
            yield process.returncode, told


def test_killed(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "killed.bundle"
    kills = 0
    for code, _ in signalled(tiny_source, bundle, signal.SIGKILL):
        assert code == -signal.SIGKILL
        kills += 1
        with pytest.raises(BundleError):
            Bundle.open(bundle)
    assert kills
    again = start(tiny_source, bundle, "--force")
    again.communicate()
    assert again.returncode == 0
    Bundle.open(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["killed.bundle"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_cancelled(number: int, tiny_source: Path, tmp_path: Path) -> None:
    cancelled = 0
    for code, told in signalled(tiny_source, tmp_path / "cancelled.bundle", number):
        cancelled += 1
        # An import that was under way can make Python end by the signal itself; shells see 130 too.
        assert code in (128 + number, -number), told
        assert "interrupted" in told
        assert "Traceback" not in told
        assert not list(tmp_path.iterdir())
    assert cancelled


def most_bytes_a_file(limit: int) -> Callable[[], None]:
    def before() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return before


@pytest.mark.parametrize("limit", [1_000, 50_000, 200_000])  # manifest, logits, weights
def test_out_of_disk(limit: int, tiny_source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's."""
    process = start(tiny_source, tmp_path / "b", preexec_fn=most_bytes_a_file(limit))
    told = process.communicate()[1]
    assert process.returncode == 1
    assert f"error: {tmp_path / 'b'} cannot be written: " in told
    assert "make room, or choose another disk" in told
    assert not list(tmp_path.iterdir())
