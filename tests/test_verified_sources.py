"""A bundle's source is compared with its SHA-256, and nothing else of its folder is read."""

from __future__ import annotations

import copy
import os
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from specplug import Bundle, BundleError, EngineError
from specplug.bundle import MANIFEST, Manifest, Provenance, read_manifest
from specplug.bundle_files import check_file
from specplug.bundle_paths import file_sha256
from specplug.engines import load, sources
from specplug.engines.sources import find_source, verified_source
from specplug.export import hub
from specplug.graph_check import check_graph
from specplug.opening import EngineOptions
from tests_support.folders import shard
from tests_support.hostile_paths import HOSTILE

FILES = ("config.json", "model.safetensors")


def provenance(folder: Path, names: tuple[str, ...] = FILES, **more: Any) -> Provenance:
    hashes = {name: file_sha256(folder / name) for name in names}
    return Provenance(**{"source": "tiny", "sha256": hashes, "tools": {}} | more)


@pytest.fixture
def folder(tiny_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny"))


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_the_files_that_are_named_are_there(folder: Path) -> None:
    (folder / "quantize_config.json").write_text("{}")
    before = descriptors()
    with verified_source(provenance(folder), [folder]) as place:
        assert {path.name for path in place.iterdir()} == {*FILES}
        for name in FILES:
            assert (place / name).read_bytes() == (folder / name).read_bytes()
    assert not place.exists()
    assert descriptors() == before


def test_another_file_under_the_name_is_not_read(folder: Path) -> None:
    """The descriptor that was compared is the one that is read."""
    wanted = (folder / "config.json").read_bytes()
    with verified_source(provenance(folder), [folder]) as place:
        (folder / "other").write_text("other")
        (folder / "other").replace(folder / "config.json")
        assert (place / "config.json").read_bytes() == wanted


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["changed", "missing", "folder", "pipe"])
def test_a_file_that_is_another_is_refused(name: str, how: str, folder: Path) -> None:
    named = provenance(folder)
    path = folder / name
    if how == "changed":
        path.write_bytes(path.read_bytes()[:-1] + b" ")
    else:
        path.unlink()
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    before = descriptors()
    for find in (find_source, lambda *found: verified_source(*found).__enter__()):
        with pytest.raises(EngineError, match=r"source 'tiny' .* is not among .*--source"):
            find(named, [folder])
    assert descriptors() == before


def test_without_hashes_no_path_is_admitted(folder: Path) -> None:
    for find in (find_source, lambda *found: verified_source(*found).__enter__()):
        with pytest.raises(EngineError, match=r"no SHA-256 of the source 'tiny'.*export the model"):
            find(provenance(folder, ()), [folder])


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_of_source_files_are_refused(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match="not a relative path inside"):
        Provenance(source="tiny", sha256={name: "0" * 64}, tools={})
    unchecked = Provenance.model_construct(source="tiny", sha256={name: "0" * 64}, revision=None)
    with pytest.raises(EngineError, match="not a relative path inside"):
        find_source(unchecked, [folder])


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "modeling_tiny.py", "deep/model.safetensors"]
)
def test_pickles_and_code_are_not_opened(name: str, folder: Path) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"anything")
    named = provenance(folder, ("config.json", name))
    with (
        pytest.raises(EngineError, match=f"names '{name}' among the files"),
        verified_source(named, [folder]),
    ):
        pytest.fail("must not be opened")


@pytest.mark.parametrize("source", ["/etc", "../tiny", "a/../../b"])
def test_a_source_that_is_a_path_elsewhere_is_refused(source: str, folder: Path) -> None:
    with pytest.raises(EngineError, match="which is no name of a model"):
        find_source(provenance(folder, source=source), [folder])


def test_a_download_is_compared_and_its_revision_is_a_commit(folder: Path, monkeypatch) -> None:
    fetched = []

    def fetch(name: str) -> tuple[Path, str]:
        fetched.append(name)
        return folder, "a" * 40

    monkeypatch.setattr(hub, "fetch_snapshot", fetch)
    named = provenance(folder, source="team/tiny", revision="a" * 40)
    assert find_source(named, []) == Path(f"team/tiny@{'a' * 40}")
    with verified_source(named, []) as place:
        assert {path.name for path in place.iterdir()} == {*FILES}
    (folder / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"team/tiny@a+ is not what was exported: .*SHA-256"):
        find_source(named, [])
    fetched.clear()
    with pytest.raises(EngineError, match="revision 'main', which is no commit"):
        find_source(provenance(folder, source="team/tiny", revision="main"), [])
    assert not fetched


def test_shards_are_found_without_the_source_s_own_index(folder: Path) -> None:
    shard(folder)
    shards = tuple(sorted(path.name for path in folder.glob("*.safetensors")))
    assert len(shards) > 1
    named = provenance(folder, ("config.json", *shards))
    (folder / "model.safetensors.index.json").write_text("no longer JSON")
    from specplug.export.source import open_source

    with verified_source(named, [folder]) as place:
        assert open_source(place).parameters() > 0


def test_the_engine_reads_only_what_was_compared(tiny_bundle: Path, tiny_source: Path, folder):
    target = Bundle.open(tiny_bundle).manifest.target
    (folder / "generation_config.json").write_text("not JSON, and not read")
    engine = load(tiny_bundle, target, EngineOptions(engine="pytorch", sources=(folder,)))
    engine.close()
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes() + b" ")
    with pytest.raises(EngineError, match="is not among"):
        load(tiny_bundle, target, EngineOptions(engine="pytorch", sources=(folder,)))


def paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a manifest's schema has paths: fields of these names, wherever they are."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key in ("path", "graph", "continuations", "vocabulary") and isinstance(value, str):
            found.append((*at, key))
        elif isinstance(value, (dict, list)):
            found += paths(value, (*at, key))
    return found


@pytest.mark.parametrize("name", HOSTILE)
def test_every_path_of_a_manifest_is_refused_if_it_is_hostile(name: str, head_bundles) -> None:
    """Target, head, its vocabulary, tokenizer, continuations and a TensorRT plan."""
    tree = read_manifest(head_bundles["fp32-ort"]).model_dump(mode="json")
    plan = tree["target"]["files"][0]["path"]
    tree["target"]["plans"] = [
        {"path": plan, "library": "tensorrt", "version": "10", "compute_capability": "9.0",
         "max_batch": 1, "capacity": 9},
    ]  # fmt: skip
    Manifest.model_validate(tree, strict=False)
    places = paths(tree)
    assert {place[-1] for place in places} >= {"path", "graph"}
    assert len(places) > 6
    for place in places:
        changed = copy.deepcopy(tree)
        at = changed
        for key in place[:-1]:
            at = at[key]
        at[place[-1]] = name
        with pytest.raises(ValueError, match=r"not a relative path inside|is not among the comp"):
            Manifest.model_validate(changed, strict=False)


def test_paths_that_differ_in_case_and_links_outside_are_refused(tiny_bundle, tmp_path) -> None:
    tree = read_manifest(tiny_bundle).model_dump(mode="json")
    first = tree["target"]["files"][0]
    tree["target"]["files"].append(first | {"path": first["path"].upper()})
    with pytest.raises(ValueError, match="one file where case does not count"):
        Manifest.model_validate(tree, strict=False)
    tree["target"]["files"][-1] = first | {"bytes": first["bytes"] + 1}
    with pytest.raises(ValueError, match="listed with two sizes or hashes"):
        Manifest.model_validate(tree, strict=False)
    copied = Path(shutil.copytree(tiny_bundle, tmp_path / "linked.bundle"))
    path = copied / first["path"]
    shutil.copy(path, tmp_path / "outside")
    for target in (tmp_path / "outside", path):  # the latter is a loop
        path.unlink()
        path.symlink_to(target)
        with pytest.raises(BundleError, match=f"{first['path']} points outside the bundle"):
            Bundle.open(copied)
    assert (copied / MANIFEST).is_file()


def test_no_other_module_opens_a_source_that_was_not_compared() -> None:
    """The engines have one way to a source."""
    folder = Path(sources.__file__).parent
    for module in folder.glob("*.py"):
        if module.name != "sources.py":
            assert "find_source" not in module.read_text(), module.name


LOCATIONS = (*(name for name in HOSTILE if "/" in name or name in ("", ".", "..")), "n" * 5000)


@pytest.mark.parametrize("location", [*LOCATIONS, "a\0b", "loop"])
def test_data_that_a_graph_keeps_elsewhere_is_refused(location: str, tmp_path: Path) -> None:
    """``location`` stands in the ONNX file itself, not in the manifest."""
    graph = tmp_path / "model.onnx"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    tensor = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    model = onnx.ModelProto()
    model.graph.initializer.append(tensor)
    graph.write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"model.onnx keeps weights in .*(outside|missing)"):
        check_graph(graph)


def test_a_name_that_no_disk_can_have_is_missing(tiny_bundle: Path, tmp_path: Path) -> None:
    file = read_manifest(tiny_bundle).target.files[0].model_copy(update={"path": "n" * 5000})
    with pytest.raises(BundleError, match="n is missing from"):
        check_file(tmp_path, file)
