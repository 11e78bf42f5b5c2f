"""Writers of the same place at once, killed ones, and leftovers of every kind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from specplug import unfinished as module
from specplug.staging import replace_file, staged
from specplug.types import ExportError
from specplug.unfinished import clear_abandoned, unfinished

WRITING = """
import os, signal, sys
from pathlib import Path
from specplug.unfinished import unfinished

with unfinished(Path(sys.argv[1]), folder=sys.argv[2] == "folder") as place:
    if sys.argv[2] == "folder":
        (place / "half").write_text("half")
    else:
        place.write_text("half")
    print(place.name, flush=True)
    if sys.argv[3] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def writer(final: Path, kind: str, then: str = "die") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITING, final, kind, then],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def failures_at_once(work: Callable[[int], None], count: int) -> list[BaseException]:
    """What so many calls raised, each on a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        calls = [pool.submit(work, number) for number in range(count)]
    return [error for call in calls if (error := call.exception()) is not None]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_a_killed_writer_left_is_removed_and_a_running_ones_is_not(kind, tmp_path) -> None:
    final = tmp_path / "some [place]*.json"
    with writer(final, kind) as killed:
        assert killed.wait() == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with writer(final, kind, "wait") as running:
        name = str(running.stdout and running.stdout.readline()).strip()
        assert name
        with unfinished(final, folder=kind == "folder") as place:
            assert {path.name for path in tmp_path.iterdir()} == {name, place.name}
            assert left != place
        assert [path.name for path in tmp_path.iterdir()] == [name]
        running.communicate("")
    clear_abandoned(final)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "old",
    [f".place.partial-{os.getpid()}", ".place.partial-1"],
    ids=["this process", "the first process"],
)
def test_a_leftover_of_the_same_process_id_does_not_block(old: str, tmp_path: Path) -> None:
    """As in containers, where each process is number 1; the names are those of version 0.9."""
    place = tmp_path / "place"
    (tmp_path / old).mkdir()
    (tmp_path / old / "specplug.json").write_text("half")
    with staged(place, replace=False) as stage:
        (stage / "known").write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
    assert (place / "known").read_text() == "new"


def test_places_are_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    for name, folder in (("plain", False), ("folder", True)):
        with unfinished(tmp_path / "new", folder=folder) as place:
            assert place.stat().st_mode == (tmp_path / name).stat().st_mode


def test_exports_of_one_place_at_once_do_not_disturb_one_another(tmp_path: Path) -> None:
    place = tmp_path / "place"
    begin = threading.Barrier(6)

    def export(number: int) -> None:
        try:
            for _ in range(5):
                begin.wait()
                with staged(place, replace=True, known_by="known") as stage:
                    (stage / "known").write_text(str(number))
                    (stage / "same").write_text(str(number))
        except BaseException:
            begin.abort()
            raise

    assert not failures_at_once(export, 6)
    assert (place / "known").read_text() == (place / "same").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_of_two_exports_without_force_the_second_does_not_replace_the_first(tmp_path) -> None:
    place = tmp_path / "place"
    with (
        pytest.raises(ExportError, match="place exists: choose"),
        staged(place, replace=False),
        staged(place, replace=False) as first,
    ):
        (first / "specplug.json").write_text("first")
    assert (place / "specplug.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["place"]


def test_writers_of_one_file_at_once(tmp_path: Path) -> None:
    file = tmp_path / "file.json"

    def write(number: int) -> None:
        for _ in range(20):
            replace_file(file, lambda part: part.write_text(str(number) * 999))
            assert len(set(file.read_text())) == 1

    assert not failures_at_once(write, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]


def test_a_failed_write_leaves_the_old_file_alone(tmp_path: Path) -> None:
    file = tmp_path / "file.json"
    file.write_text("old")

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        replace_file(file, fail)
    assert [path.name for path in tmp_path.iterdir()] == ["file.json"]
    assert file.read_text() == "old"


def test_without_locks_leftovers_stay_and_block_nothing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(module, "_locked", lambda descriptor: None)
    left = tmp_path / ".place.partial-1"
    left.mkdir()
    for _ in range(2):
        with staged(tmp_path / "place", replace=True, known_by="known") as stage:
            (stage / "known").write_text("new")
    assert {path.name for path in tmp_path.iterdir()} == {"place", left.name}
