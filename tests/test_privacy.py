"""Nothing phones home: ONNX Runtime's own usage events are off before it can begin."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests_support.native import TOOL, Native

# What would switch them off as well, so that the test could not fail.
_SWITCHES = ("ORT_DISABLE_TELEMETRY", "ORT_RUNNING_UNIT_TESTS", "CI", "XDG_CACHE_HOME")
_OTHERS = ("GITHUB_ACTIONS", "TF_BUILD", "GITLAB_CI", "JENKINS_URL", "BUILD_ID")


@pytest.fixture
def at_home(tmp_path: Path) -> list[str]:
    """A command's beginning, with an empty home: events would be kept there before they go."""
    unset = [word for name in (*_SWITCHES, *_OTHERS) for word in ("-u", name)]
    return ["env", *unset, f"HOME={tmp_path}"]


def test_from_python(at_home: list[str], tiny_bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "specplug", "generate", str(tiny_bundle), "a", "--max-tokens"]
    done = subprocess.run([*at_home, *command, "2"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [*tmp_path.rglob("*")] == []


def test_who_wants_it_may_have_it() -> None:
    code = "import os, specplug; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ | {"ORT_DISABLE_TELEMETRY": "0", "CI": "true"},
        check=True,
    )
    assert done.stdout.strip() == "0"


def test_from_cpp(
    at_home: list[str], native_build: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    with Native(tiny_bundle, program=(*at_home, TOOL)) as native:
        assert native.ask("generate", prompt=[1, 2], max_tokens=2)
    assert [*tmp_path.rglob("*")] == []
