"""``specplug distill`` from prompts to a bundle with a head, killed on the way and not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specplug.bundle import Bundle
from specplug.cli.distill import _time
from tests_support.command import specplug

PROMPTS = [{"prompt": f"tell of {number} {'and ' * (number % 9)}"} for number in range(60)]
pytestmark = pytest.mark.slow  # a process with PyTorch each

SHORT = ("--max-tokens", "30", "--epochs", "2", "--precision", "fp32", "--threads", "1")
SMALL = (*SHORT, "--vocabulary", "200")


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, PROMPTS)))
    return path


def distill(*arguments: Any) -> subprocess.CompletedProcess[str]:
    return specplug("distill", *SMALL, *arguments)


@pytest.fixture(scope="module")
def head(
    head_target: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("distilled") / "head"
    done = distill(head_target, "--prompts", prompts, "-o", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stderr


def test_a_head_is_made_and_exported(
    head: tuple[Path, str], head_target: Path, tmp_path: Path
) -> None:
    folder, said = head
    assert "tokens a round" in said
    assert f"--draft {folder}" in said
    assert {path.name for path in folder.iterdir()} == {
        "config.json", "model.safetensors", "provenance.json", "training.png",
    }  # fmt: skip
    assert not folder.with_name("head.work").exists()
    told = json.loads((folder / "provenance.json").read_text())
    assert told["prompts"]["count"] == told["answered"]["prompts"] == len(PROMPTS)
    assert len(told["acceptance"]) == 4
    bundle = tmp_path / "headed.bundle"
    made = specplug("export", head_target, "--draft", folder, "-o", bundle, "--precision", "fp32")
    assert made.returncode == 0, made.stderr
    assert Bundle.open(bundle).manifest.draft is not None
    texts = [
        specplug("generate", bundle, "tell of 3", "--max-tokens", "40", "--drafter", drafter).stdout
        for drafter in ("none", "head", "auto")
    ]
    assert texts[0]
    assert texts == texts[:1] * 3


def test_a_head_is_trained_further(
    head: tuple[Path, str], head_target: Path, prompts: Path, tmp_path: Path
) -> None:
    before, _ = head
    folder = tmp_path / "further"
    given = ("--prompts", prompts, "-o", folder, "--start-from", before)
    refused = distill(head_target, *given, "--layers", "0,2")
    assert refused.returncode == 1
    assert f"layers are (0, 2), and the head {before} reads" in " ".join(refused.stderr.split())
    done = specplug("distill", *SHORT, head_target, *given)
    assert done.returncode == 0, done.stderr
    old, new = (load_file(each / "model.safetensors") for each in (before, folder))
    assert torch.equal(old["d2t"], new["d2t"])
    assert not torch.equal(old["fc.weight"], new["fc.weight"])
    told = [json.loads((each / "provenance.json").read_text()) for each in (before, folder)]
    assert told[0]["start_from"] is None
    assert set(told[1]["start_from"]) == {"config.json", "model.safetensors"}
    assert told[1]["acceptance_length"] >= told[0]["acceptance_length"]


def test_a_head_is_trained_further_with_another_vocabulary(
    head: tuple[Path, str], head_target: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "further"
    given = ("--prompts", prompts, "-o", folder, "--start-from", head[0])
    done = distill(head_target, *given, "--vocabulary", "150")  # the last one counts
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "config.json").read_text())["draft_vocab_size"] == 150
    told = [json.loads((each / "provenance.json").read_text()) for each in (head[0], folder)]
    assert [each["draft_vocabulary"]["tokens"] for each in told] == [200, 150]
    assert told[1]["acceptance_length"] >= told[0]["acceptance_length"] - 0.1


def test_killed_at_any_time_it_ends_with_the_same_head(
    head: tuple[Path, str], head_target: Path, prompts: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "head"
    command = [
        sys.executable, "-m", "specplug", "distill", head_target, "--prompts", prompts,
        "-o", folder, *SMALL,
    ]  # fmt: skip
    kills = 0
    for seconds in (3.0, 6.0, 9.0, 12.0):
        running = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
        time.sleep(seconds)
        kills += running.poll() is None
        running.send_signal(signal.SIGKILL)
        running.communicate()
        if folder.exists():
            break
        assert not any(path.name == "head" for path in tmp_path.iterdir())
    if not folder.exists():
        done = distill(head_target, "--prompts", prompts, "-o", folder)
        assert done.returncode == 0, done.stderr
    assert kills
    for name in ("model.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (head[0] / name).read_bytes()


def test_a_bundle_gets_the_head(head_target: Path, prompts: Path, tmp_path: Path) -> None:
    bundle, folder = tmp_path / "target.bundle", tmp_path / "head"
    assert specplug("export", head_target, "-o", bundle, "--precision", "fp32").returncode == 0
    done = distill(
        bundle, "--source", head_target, "--prompts", prompts, "-o", folder, "--eight-bits"
    )
    assert done.returncode == 0, done.stderr
    manifest = Bundle.open(bundle).manifest
    assert manifest.draft is not None
    assert manifest.draft.head is not None
    assert manifest.target.precision == "fp32"
    assert specplug("verify", bundle, "--sequences", "100").returncode == 0


def test_a_dry_run_leaves_nothing(head_target: Path, prompts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "head"
    done = distill(head_target, "--prompts", prompts, "-o", folder, "--dry-run")
    assert done.returncode == 0, done.stderr
    for word in ("answering", "training", "disk", "memory"):
        assert word in done.stdout
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--max-tokens", "2"], "max_tokens is 2"),
        (["--layers", "a"], "--layers a"),
        (["--layers", "0,9"], "layers"),
        (["--epochs", "0"], "epochs is 0"),
        (["--temperature", "-1"], "-1.0"),
        (["--vocabulary", "0"], "vocabulary is 0: give 1 or more"),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--device", "cuda:99"], "device is 'cuda:99', which PyTorch does not have here"),
        (["--device", "cuda:99", "--dry-run"], "give cpu"),
        (["--start-from", "nowhere"], "--start-from nowhere is no head: it has no config.json"),
    ],
)
def test_wrong_arguments_are_named(
    head_target: Path, prompts: Path, tmp_path: Path, change: list[str], message: str
) -> None:
    done = specplug("distill", head_target, "--prompts", prompts, "-o", tmp_path / "head", *change)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert os.listdir(tmp_path) == []


def test_what_is_in_the_way_is_named(
    head: tuple[Path, str], head_target: Path, prompts: Path, tmp_path: Path
) -> None:
    again = distill(head_target, "--prompts", prompts, "-o", head[0])
    assert again.returncode == 1
    assert "--force" in again.stderr
    work = tmp_path / "head.work"
    work.mkdir()
    (work / "distillation.json").write_text('{"seed": 1}')
    other = distill(head_target, "--prompts", prompts, "-o", tmp_path / "head")
    assert other.returncode == 1
    assert "another output, or delete it" in " ".join(other.stderr.split())


def test_times_are_told_in_words() -> None:
    assert [_time(each) for each in (5, 600, 4000)] == ["5 s", "10 min", "1 h 7 min"]
