"""The example of an engine in its own package: installed, found, and through the contract suite."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests_support.command import specplug

EXAMPLE = Path(__file__).parent.parent / "examples" / "onnx-reference-engine"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder for PYTHONPATH, with the package and its entry point."""
    folder = tmp_path_factory.mktemp("example")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    options = ["--no-build-isolation", "--target", str(folder), str(EXAMPLE)]
    subprocess.run([*command, *options], check=True)
    return str(folder)


def test_it_passes_the_contract(installed: str, tiny_bundles: dict[str, Path]) -> None:
    bundle = str(tiny_bundles["standard-fp32"])
    environment = os.environ | {"PYTHONPATH": installed, "SPECPLUG_BUNDLE": bundle}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert "28 passed" in done.stdout


def test_the_command_line_finds_it(installed: str, tiny_bundles: dict[str, Path]) -> None:
    bundle = tiny_bundles["standard-fp32"]
    options = ("generate", bundle, "one two three", "--max-tokens", "12")
    ours = specplug(*options)
    theirs = specplug(*options, "--target-engine", "onnx-reference", PYTHONPATH=installed)
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stdout == ours.stdout
    refused = specplug(
        "generate", tiny_bundles["fp32"], "a", "--target-engine", "onnx-reference",
        PYTHONPATH=installed,
    )  # fmt: skip
    assert "onnx-reference runs the standard dialect, not ort" in refused.stderr


def test_without_it_the_engines_are_named(tiny_bundles: dict[str, Path]) -> None:
    done = specplug("generate", tiny_bundles["fp32"], "a", "--target-engine", "onnx-reference")
    assert "no engine named 'onnx-reference': have onnxruntime, pytorch, tensorrt" in done.stderr
