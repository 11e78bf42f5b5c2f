"""Exports that do not reach their end: killed, cancelled, out of disk; nothing is left of them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from specplug import Bundle
from specplug.types import BundleError
from tests_support.command import Started

PAUSES = (0.0, 0.1, 0.3, 0.8)  # seconds after the first file is made


def export(source: Path, bundle: Path, *options: str, most_bytes: int | None = None) -> Started:
    return Started("export", source, "-o", bundle, *options, most_bytes=most_bytes, COLUMNS="400")


def signalled(source: Path, bundle: Path, number: int) -> Iterator[tuple[int, str]]:
    """Exit code and stderr of exports that a signal ended, each a little later."""
    for pause in PAUSES:
        process = export(source, bundle, "--precision", "w8a8", "--self-draft", "int4", "--force")
        while process.poll() is None and not list(bundle.parent.glob(".*.partial-*")):
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(number)
        told = process.communicate()[1]
        if code := process.wait():
            yield code, told


def test_killed(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "killed.bundle"
    kills = 0
    for code, _ in signalled(tiny_source, bundle, signal.SIGKILL):
        assert code == -signal.SIGKILL
        kills += 1
        with pytest.raises(BundleError):
            Bundle.open(bundle)
    assert kills
    again = export(tiny_source, bundle, "--force")
    again.communicate()
    assert again.wait() == 0
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


@pytest.mark.parametrize("limit", [1_000, 50_000, 200_000])  # manifest, logits, weights
def test_out_of_disk(limit: int, tiny_source: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk's."""
    process = export(tiny_source, tmp_path / "b", most_bytes=limit)
    told = process.communicate()[1]
    assert process.wait() == 1
    assert f"error: {tmp_path / 'b'} cannot be written: " in told
    assert "make room, or choose another disk" in told
    assert not list(tmp_path.iterdir())
