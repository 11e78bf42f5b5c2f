"""Exports that do not reach their end: killed, cancelled, out of disk; nothing is left of them."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from specplug import Bundle
from specplug.staging import staged
from specplug.types import ExportError
from tests_support.command import Started

PAUSES = (0.0, 0.1, 0.3, 0.8)  # seconds after the first file is made


def export(source: Path, bundle: Path, *options: str, most_bytes: int | None = None) -> Started:
    return Started("export", source, "-o", bundle, *options, most_bytes=most_bytes, COLUMNS="400")


def signalled(source: Path, bundle: Path, number: int) -> Iterator[tuple[int, str]]:
    """Exit code and stderr of exports that a signal ended, each a little later.

    One that had its bundle in place by then leaves it whole; it is removed.
    """
    for pause in PAUSES:
        before = {*bundle.parent.iterdir()}  # what killed ones left
        process = export(source, bundle, "--precision", "w8a8", "--self-draft", "int4", "--force")
        while process.poll() is None and not {*bundle.parent.iterdir()} - before:
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(number)
        told = process.communicate()[1]
        if bundle.exists():
            Bundle.open(bundle)
            shutil.rmtree(bundle)
        elif code := process.wait():
            yield code, told


def test_killed(tiny_source: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "killed.bundle"
    codes = [code for code, _ in signalled(tiny_source, bundle, signal.SIGKILL)]
    assert codes
    assert set(codes) == {-signal.SIGKILL}
    again = export(tiny_source, bundle, "--force")
    again.communicate()
    assert again.wait() == 0
    Bundle.open(bundle)
    assert [path.name for path in tmp_path.iterdir()] == ["killed.bundle"]


REPLACING = """
import os, signal, sys
from pathlib import Path
from specplug.staging import staged

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have jobs ignore it
with staged(Path(sys.argv[1]), replace=True, known_by="known") as stage:
    (stage / "known").write_text("new")
    rename, Path.rename = Path.rename, lambda path, to: (
        os.kill(os.getpid(), int(sys.argv[2])) if path == stage else rename(path, to)
    )
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ended_between_two_names(number: int, tmp_path: Path) -> None:
    """The old one is not at its place and the new one not yet: the old one stays what is there."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "known").write_text("old")
    command = [sys.executable, "-c", REPLACING, place, str(int(number))]
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == -number
    assert place.exists() == (number == signal.SIGINT)
    with pytest.raises(ExportError, match="exists"), staged(place, replace=False):
        pytest.fail("the place is taken")
    assert (place / "known").read_text() == "old"
    assert list(tmp_path.iterdir()) == [place]


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
