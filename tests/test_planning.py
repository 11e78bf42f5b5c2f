"""``export --plan``: what it says is what an export then does."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from specplug.cli import app
from specplug.export import export_bundle, plan_export
from specplug.export.precision import Precision
from specplug.types import ExportError
from tests_support.made_tokenizers import words
from tests_support.tiny import write_checkpoint

WIDE = {"hidden_size": 128, "intermediate_size": 288, "num_attention_heads": 8}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("planned") / "source"
    return write_checkpoint(folder, tie_word_embeddings=request.param, **WIDE)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "w8a8", "int8", "int4"])
def test_sizes_are_those_of_the_export(source: Path, precision: Precision, tmp_path: Path) -> None:
    options = {"precision": precision, "self_draft": "int8:layers=1"}
    if precision != "fp32":
        options["keep_fp32"] = r"layers\.0\.mlp"
    place = tmp_path / "made.bundle"
    plan = plan_export(source, place, **options)
    assert not list(tmp_path.iterdir())
    manifest = export_bundle(source, place, **options)
    written = {file.path: file.bytes for file in manifest.all_files()}
    assert plan.files.keys() == written.keys() | {"specplug.json"}
    for path, size in written.items():
        if not path.endswith(".onnx"):  # graphs are large beside tiny weights
            assert plan.files[path] == pytest.approx(size, rel=0.02), path


def test_it_refuses_what_an_export_would(tiny_source: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", tokenizer=words())
    taken = tmp_path / "taken"
    taken.mkdir()
    for place, options, message in (
        (tmp_path / "b", {"draft": other}, "cannot be translated"),
        (tmp_path / "b", {"keep_fp32": "nothing", "precision": "int4"}, "matches no layer"),
        (tmp_path / "b", {"self_draft": "layers=0-9"}, "the model has 2 layers"),
        (tmp_path / "b", {"precision": "gguf"}, "keeps the quantization of a GGUF file"),
        (tmp_path / "b", {"quality_text": tmp_path / "none.txt"}, "No such file"),
        (taken, {}, "exists: choose another name"),
        (taken, {"force": True}, "is no bundle"),
        (tmp_path / "no" / "b", {}, "is not a folder: make it first"),
    ):
        with pytest.raises(ExportError, match=message):
            plan_export(tiny_source, place, **options)


def test_on_the_command_line(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["export", str(tiny_source), "-o", str(tmp_path / "b"), "--plan"]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0
    for word in ("target/model.onnx.data", "memory, roughly", "disk that is free", "time"):
        assert word in run.stdout
    usage = namedtuple("usage", "total used free")(10**9, 10**9 - 1000, 1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    run = CliRunner().invoke(app, command)
    assert isinstance(run.exception, ExportError)
    assert "has 1.0 kB free and the export needs" in str(run.exception)
    assert not (tmp_path / "b").exists()
