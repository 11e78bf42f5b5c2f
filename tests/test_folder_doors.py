"""What a folder holds is refused alike by each command, and in draft models and heads."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from specplug.export.from_onnx import export_onnx
from specplug.export.head import Head
from specplug.export.source import Source
from specplug.export.speculators import open_head
from specplug.types import ExportError
from tests_support.command import specplug
from tests_support.folders import shard
from tests_support.heads import copy_head

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


@pytest.fixture
def folder(tiny_source: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny-llama"))


def pointer(folder: Path) -> str:
    (folder / "model.safetensors").write_text(POINTER)
    return "model.safetensors is a Git LFS pointer"


def quantized(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "hqq"}
    (folder / "config.json").write_text(json.dumps(config))
    return "is quantized by hqq, which is not read"


def code(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text("raise SystemExit('run')")
    return "code that comes with weights is never run"


def template(folder: Path) -> str:
    (folder / "chat_template.jinja").write_text("{% if %}")
    return "the chat template does not parse"


@pytest.mark.parametrize(
    ("door", "spoil"),
    [
        *((door, pointer) for door in ("export", "plan", "draft", "verify")),
        ("plan", quantized),
        ("plan", template),
        ("plan", code),
        ("verify", code),
    ],
)
def test_commands(
    door: str,
    spoil: Callable[[Path], str],
    folder: Path,
    tiny_source: Path,
    tiny_bundles: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    """With an exit code of 1, one line, and nothing written; whatever is answered on stdin."""
    message = spoil(folder)
    made = tmp_path / "made.bundle"
    fp32 = ("--precision", "fp32")
    arguments: dict[str, tuple[object, ...]] = {
        "export": ("export", folder, "-o", made, *fp32),
        "plan": ("export", folder, "-o", made, *fp32, "--plan"),
        "draft": ("export", tiny_source, "-o", made, *fp32, "--draft", folder),
        "verify": ("verify", tiny_bundles["fp32"], "--source", folder),
    }
    done = specplug(*arguments[door], text="y\ny\n")
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not made.exists()


@pytest.mark.parametrize("content", [POINTER, ""])
@pytest.mark.parametrize("tool", ["optimum", "genai-int4"])
def test_folders_of_graphs(tool: str, content: str, tmp_path: Path) -> None:
    """Every file of theirs that is read, the template included."""
    whole = Path(__file__).parent / "data" / tool
    for name in (path.name for path in whole.iterdir()):
        folder = Path(shutil.copytree(whole, tmp_path / name))
        (folder / name).write_text(content)
        message = f"{name} is a Git LFS pointer" if content else f"{name} is empty"
        with pytest.raises(ExportError, match=re.escape(message)):
            export_onnx(folder, tmp_path / "made.bundle")


def test_the_weights_of_a_head_are_those_of_its_index(head_source: Source, tmp_path: Path) -> None:
    folder = copy_head(tmp_path / "head")
    expected = open_head(folder, head_source).head.state_dict()
    stray = {name: value * 2 for name, value in load_file(folder / "model.safetensors").items()}
    save_file(stray, folder / "z.safetensors")
    opened = open_head(folder, head_source)
    assert all(torch.equal(opened.head.state_dict()[name], expected[name]) for name in expected)
    assert "z.safetensors" not in opened.hashes()
    names = shard(folder)
    opened = open_head(folder, head_source)
    assert all(torch.equal(opened.head.state_dict()[name], expected[name]) for name in expected)
    assert set(opened.hashes()) == {"config.json", *names}
    (folder / names[0]).unlink()
    with pytest.raises(ExportError, match=f"{names[0]} is missing"):
        open_head(folder, head_source)


def test_heads_are_refused_by_name(head_source: Source, tmp_path: Path) -> None:
    folder = copy_head(tmp_path / "unknown", rotate_by_half=True)
    with pytest.raises(ExportError, match="the key 'rotate_by_half' in its config"):
        open_head(folder, head_source)
    folder = copy_head(tmp_path / "pointer")
    (folder / "model.safetensors").write_text(POINTER)
    with pytest.raises(ExportError, match="is a Git LFS pointer"):
        open_head(folder, head_source)
    folder = copy_head(tmp_path / "hqq", quantization_config={"quant_method": "hqq"})
    with pytest.raises(ExportError, match="the head hqq is quantized by hqq, which is not read"):
        open_head(folder, head_source)
    folder = copy_head(tmp_path / "bare")
    tensors = load_file(folder / "model.safetensors")
    tensors["fc.weight"] = tensors["fc.weight"].to(torch.float8_e4m3fn)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ExportError, match=r"fc\.weight is stored as float8_e4m3fn"):
        open_head(folder, head_source)


def test_a_quantized_head_is_read(head_source: Source, tmp_path: Path) -> None:
    folder = copy_head(tmp_path / "head", quantization_config={"quant_method": "fp8"})
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop("fc.weight").float()
    scale = weight.abs().max() / 448
    tensors["fc.weight"] = (weight / scale).to(torch.float8_e4m3fn)
    tensors["fc.weight_scale_inv"] = scale
    save_file(tensors, folder / "model.safetensors")
    head = open_head(folder, head_source).head
    assert isinstance(head, Head)
    expected = tensors["fc.weight"].float() * scale
    torch.testing.assert_close(head.fc.weight.detach(), expected, atol=0, rtol=0)
