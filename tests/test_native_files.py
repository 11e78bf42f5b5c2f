"""C++: the paths that a manifest may name, and a tuning.json that is damaged, as in Python."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from specplug import BundleError
from specplug.bundle import MANIFEST, read_manifest
from test_tuning import damaged
from test_verified_sources import paths
from tests_support.hostile_paths import HOSTILE
from tests_support.native import BUNDLE, Native, NativeError


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))


def refused_by_both(bundle: Path, tree: dict[str, Any], named: str) -> None:
    (bundle / MANIFEST).write_text(json.dumps(tree))
    with pytest.raises(BundleError):
        read_manifest(bundle)
    native = Native()
    with pytest.raises(NativeError, match=named) as refused:
        native.ask("open", path=str(bundle))
    assert refused.value.status == BUNDLE
    native.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_paths_are_refused_by_name(name: str, native_build: None, bundle: Path) -> None:
    tree = json.loads((bundle / MANIFEST).read_text())
    plan = {"path": tree["target"]["files"][0]["path"], "library": "tensorrt", "version": "10",
            "compute_capability": "9.0", "max_batch": 1, "capacity": 9}  # fmt: skip
    tree["target"]["plans"] = [plan]
    for place in paths(tree):
        changed = copy.deepcopy(tree)
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = name
        refused_by_both(bundle, changed, "relative path inside|not among the component's files")
    changed = copy.deepcopy(tree)
    changed["draft"]["provenance"]["sha256"][name] = "0" * 64
    refused_by_both(bundle, changed, "relative path inside")


def test_two_names_of_one_file_are_refused(native_build: None, bundle: Path) -> None:
    tree = json.loads((bundle / MANIFEST).read_text())
    first = tree["target"]["files"][0]
    for other, named in (
        (first | {"path": first["path"].upper()}, "where case does not count"),
        (first | {"bytes": first["bytes"] + 1}, "listed with two sizes or hashes"),
    ):
        changed = copy.deepcopy(tree)
        changed["target"]["files"].append(other)
        refused_by_both(bundle, changed, named)


@pytest.mark.parametrize("token", [-1, 260, 2**31, 10**12])
def test_stop_tokens_beyond_the_vocabulary_are_refused(
    token: int, native_build: None, bundle: Path
) -> None:
    tree = json.loads((bundle / MANIFEST).read_text())
    tree["tokenizer"]["stop_token_ids"].append(token)
    refused_by_both(bundle, tree, f"stop token {token} is not in \\[0, 260\\)")
    del tree["tokenizer"]
    tree["stop_token_ids"] = [token]
    refused_by_both(bundle, tree, f"stop token {token} is not in \\[0, 260\\)")


CONTENTS = {**damaged(), "folder": None}


@pytest.mark.parametrize("content", CONTENTS.values(), ids=CONTENTS.keys())
def test_a_damaged_tuning_file_does_not_stop_an_answer(
    content, native_build: None, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (bundle / "tuning.json").mkdir()
    else:
        (bundle / "tuning.json").write_bytes(content)
    native = Native(bundle)
    native.ask("generate", prompt=[1, 2, 3], max_tokens=3, drafter="ngram")
    assert native.close() == 0
    told = capfd.readouterr().err
    assert told.count("tuning.json is not used (") == 1
    assert "costs are measured anew" in told
