"""Whatever is done to a bundle's files, hashes put right again, it opens or gives a clear error."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specplug import Bundle, BundleError
from specplug.bundle import MANIFEST

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, -1, 2**31, 2**63, 10**400])
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["", "..", "../x", "/etc/passwd", "target", "a\0b", "\ud800", "x" * 5000])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def folder(tiny_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written to by every example, which puts it right first."""
    made = tmp_path_factory.mktemp("tampered") / "bundle"
    return Path(shutil.copytree(tiny_bundles["fp32"], made))


@pytest.fixture(scope="module")
def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / MANIFEST).read_text())


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "tokenizer.json").read_text())


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value in JSON, the whole left out."""
    children = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, child in children:
        found.append((*path, key))
        if isinstance(child, (dict, list)):
            found += places(child, (*path, key))
    return found


def tampered(data: st.DataObject, tree: Any) -> str:
    """JSON with a few values replaced, removed, or given a second time."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, 3))):
        *parents, last = data.draw(st.sampled_from(places(tree)))
        at = tree
        for key in parents:
            at = at[key]
        how = data.draw(st.sampled_from(["replace", "remove", "add"]))
        if how == "remove":
            del at[last]
        elif how == "add" and isinstance(at, dict):
            at[data.draw(st.text(max_size=5))] = at[last]
        else:
            at[last] = data.draw(VALUES)
        if not places(tree):
            break
    text = json.dumps(tree)
    if data.draw(st.booleans()):  # a key twice: the last one counts
        key, value = data.draw(st.sampled_from(sorted(tree.items(), key=str)))
        text = f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"
    return text


def opens_or_says_why(folder: Path) -> None:
    try:
        tokenizer = Bundle.open(folder).tokenizer()
    except BundleError:
        return
    if tokenizer is not None:
        tokenizer.decode(tokenizer.encode("<|user|>two words"))


once_each = settings(
    deadline=None,
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@once_each
@given(data=st.data())
def test_any_manifest(data: st.DataObject, folder: Path, manifest: dict[str, Any]) -> None:
    (folder / MANIFEST).write_text(tampered(data, manifest), encoding="utf-8")
    opens_or_says_why(folder)


@once_each
@given(data=st.data())
def test_any_tokenizer(
    data: st.DataObject, folder: Path, manifest: dict[str, Any], tokenizer: dict[str, Any]
) -> None:
    tree = dict(tokenizer)
    tree["model"] = dict(tree["model"], vocab=dict(list(tree["model"]["vocab"].items())[:4]))
    put(folder, manifest, "tokenizer.json", tampered(data, tree).encode())
    opens_or_says_why(folder)


@once_each
@given(content=st.binary(max_size=100))
def test_any_bytes_for_a_file(content: bytes, folder: Path, manifest: dict[str, Any]) -> None:
    original = (folder / "target" / "model.onnx").read_bytes()
    try:
        put(folder, manifest, "target/model.onnx", content)
        opens_or_says_why(folder)
    finally:
        (folder / "target" / "model.onnx").write_bytes(original)


def put(folder: Path, manifest: dict[str, Any], name: str, content: bytes) -> None:
    """Write a file, and the manifest as if it had always been so."""
    changed = copy.deepcopy(manifest)
    files = [*changed["target"]["files"], changed["tokenizer"]["file"]]
    entry = next(file for file in files if file["path"] == name)
    entry["bytes"] = len(content)
    entry["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / name).write_bytes(content)
    (folder / MANIFEST).write_text(json.dumps(changed))
