"""Graphs are checked without the onnx package; here against it."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from specplug import Bundle, BundleError
from specplug.bundle import write_manifest
from specplug.bundle_files import describe_file
from specplug.graph_check import check_graph, read_references

DATA = Path(__file__).parent / "data"


def graphs(tiny_bundles: dict[str, Path]) -> list[Path]:
    return [*DATA.rglob("*.onnx"), *(p for b in tiny_bundles.values() for p in b.rglob("*.onnx"))]


def test_it_reads_what_onnx_reads(tiny_bundles: dict[str, Path]) -> None:
    files = graphs(tiny_bundles)
    assert len(files) >= 7
    for file in files:
        model = onnx.load(file, load_external_data=False)
        found = read_references(file)
        nodes = {node.domain for node in model.graph.node if node.HasField("domain")}
        opsets = {opset.domain for opset in model.opset_import}
        assert found.domains - {""} == (nodes | opsets) - {""}
        expected = [
            {entry.key: entry.value for entry in tensor.external_data}
            for tensor in model.graph.initializer
            if tensor.external_data
        ]
        assert found.external == expected
        check_graph(file)


def nested(kind: str) -> onnx.ModelProto:
    """A model with an operator of the domain ``elsewhere``, hidden in one of the usual places."""
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    foreign = helper.make_node("Steal", [], ["y"], domain="elsewhere")
    body = helper.make_graph([foreign], "body", [], [value])
    if kind == "node":
        return helper.make_model(body)
    if kind == "opset":
        model = helper.make_model(helper.make_graph([], "empty", [], []))
        model.opset_import.append(helper.make_opsetid("elsewhere", 1))
        return model
    if kind == "function":
        model = helper.make_model(helper.make_graph([], "empty", [], []))
        opsets = [helper.make_opsetid("", 20)]
        model.functions.append(
            helper.make_function("com.microsoft", "F", [], ["y"], [foreign], opsets)
        )
        return model
    for _ in range(3 if kind == "deep" else 1):
        node = helper.make_node("If", ["flag"], ["y"], then_branch=body, else_branch=body)
        body = helper.make_graph([node], "outer", [], [value], [flag])
    return helper.make_model(body)


@pytest.mark.parametrize("kind", ["node", "opset", "function", "subgraph", "deep"])
def test_foreign_operators_are_refused_wherever_they_are(kind: str, tmp_path: Path) -> None:
    onnx.save(nested(kind), tmp_path / "model.onnx")
    with pytest.raises(BundleError, match="operators of the domain 'elsewhere'"):
        check_graph(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"location": "../secret"}, "'../secret', outside its own folder"),
        ({"location": "/etc/passwd"}, "'/etc/passwd', outside"),
        ({"location": ".."}, "'..', outside"),
        ({"location": "."}, "'.', outside"),
        ({"location": ""}, "'', outside"),
        ({"location": "sub/weights"}, "'sub/weights', outside"),
        ({"location": "link"}, "'link', outside"),
        ({"location": "a\0b"}, "outside"),
        ({"location": "none"}, "'none', which is missing"),
        ({"location": "weights", "length": "11"}, "wants bytes 0 to 11 of 'weights', which has 10"),
        ({"location": "weights", "offset": "-1"}, "wants bytes -1 to"),
        ({"location": "weights", "offset": str(10**30)}, "which has 10"),
        ({"location": "weights", "offset": "x"}, "without numbers"),
    ],
)
def test_data_elsewhere_is_refused(entries: dict[str, str], message: str, tmp_path: Path) -> None:
    folder = tmp_path / "target"
    folder.mkdir()
    (folder / "weights").write_bytes(b"0123456789")
    (tmp_path / "secret").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    graph = helper.make_graph([], "graph", [], [], [tensor])
    (folder / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(BundleError, match=message):
        check_graph(folder / "model.onnx")


@given(data=st.data())
@settings(
    max_examples=300, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_damage_is_an_error_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    content = bytearray((DATA / "genai-int4" / "model.onnx").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))]
    shutil.copy(DATA / "genai-int4" / "model.onnx.data", tmp_path)
    (tmp_path / "model.onnx").write_bytes(content)
    with contextlib.suppress(BundleError):
        check_graph(tmp_path / "model.onnx")


@given(st.binary(max_size=2000))
@settings(deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    try:
        check_graph(tmp_path / "model.onnx")
    except BundleError:
        return
    assert content  # an empty file is none


def test_endless_nesting_and_endless_fields_end(tmp_path: Path, monkeypatch) -> None:
    content = b""
    for _ in range(40):  # graph { node { attribute { graph {…
        for tag in (6, 5, 1):
            content = bytes([tag << 3 | 2]) + _varint(len(content)) + content
    (tmp_path / "model.onnx").write_bytes(bytes([7 << 3 | 2]) + _varint(len(content)) + content)
    with pytest.raises(BundleError, match="not a readable ONNX graph"):
        check_graph(tmp_path / "model.onnx")
    monkeypatch.setattr("specplug.graph_check._MOST_FIELDS", 1000)
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01" * 1001)
    with pytest.raises(BundleError, match="more than 1000 fields"):
        check_graph(tmp_path / "model.onnx")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def test_a_bundle_with_a_foreign_graph_is_not_opened(tiny_bundle: Path, tmp_path: Path) -> None:
    """Its hashes are right: whoever made it made it so."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))
    manifest = Bundle.open(copy).manifest
    model = onnx.load(copy / "target" / "model.onnx", load_external_data=False)
    model.graph.node[0].domain = "elsewhere"
    (copy / "target" / "model.onnx").write_bytes(model.SerializeToString())
    files = [describe_file(copy, file.path) for file in manifest.target.files]
    target = manifest.target.model_copy(update={"files": files})
    write_manifest(copy, manifest.model_copy(update={"target": target}))
    with pytest.raises(BundleError, match="operators of the domain 'elsewhere'"):
        Bundle.open(copy)
