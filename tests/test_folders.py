"""Checkpoint folders are read as transformers reads them untouched, or refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specplug.export.chat_templates import check_template
from specplug.export.folders import INDEX, WEIGHTS
from specplug.export.planning import plan_export
from specplug.export.source import open_source
from specplug.export.tokenizer_folder import folder_tokenizer
from specplug.types import ExportError
from tests_support.folders import shard, swapped
from tests_support.tiny import CHAT_TEMPLATE, write_checkpoint

TOKENS = [[1, 2, 3, 40, 50, 60, 7]]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4\n"


@pytest.fixture
def folder(tiny_source: Path, tmp_path: Path) -> Path:
    """A copy to be changed."""
    return Path(shutil.copytree(tiny_source, tmp_path / "tiny-llama"))


def judged(folder: Path) -> torch.Tensor:
    """What transformers says of the untouched folder."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits


def check(folder: Path) -> None:
    with torch.no_grad():
        found = open_source(folder).reference()(torch.tensor(TOKENS)).logits
    torch.testing.assert_close(found, judged(folder), atol=1e-5, rtol=0)


def stray(folder: Path, name: str) -> None:
    """Other weights under the model's names."""
    tensors = {key: torch.randn_like(value) for key, value in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / name, metadata={"format": "pt"})


def change(path: Path, **changed: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    found = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))


@pytest.mark.parametrize("name", ["zz.safetensors", "consolidated.safetensors", "a.safetensors"])
@pytest.mark.parametrize("sharded", [False, True])
def test_stray_files_are_not_read(name: str, sharded: bool, folder: Path) -> None:
    stray(folder, name)
    if sharded:
        shard(folder)
    check(folder)
    assert name not in open_source(folder).hashes()


def test_a_single_file_goes_before_an_index(folder: Path) -> None:
    stray(folder, "other.safetensors")
    names = dict.fromkeys(load_file(folder / WEIGHTS), "other.safetensors")
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    check(folder)


@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("stored", ["equal", "other", "alone"])
def test_a_head_that_is_stored_beside_the_embedding(tie: bool, stored: str, folder: Path) -> None:
    change(folder / "config.json", tie_word_embeddings=tie)
    tensors = load_file(folder / WEIGHTS)
    table = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = {"equal": table.clone(), "other": table * 0.5, "alone": table}[
        stored
    ]
    if stored == "alone":
        del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    if stored == "alone" and not tie:
        with pytest.raises(ExportError, match=r"missing model\.embed_tokens\.weight"):
            open_source(folder)
    else:
        check(folder)


def missing(folder: Path) -> None:
    (folder / shard(folder)[1]).unlink()


def doubled(folder: Path) -> None:
    names = shard(folder)
    tensors = load_file(folder / names[0]) | load_file(folder / names[1])
    save_file(tensors, folder / names[1], metadata={"format": "pt"})


def unlisted(folder: Path) -> None:
    shard(folder)
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    del places["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))


def without_index(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).unlink()


def escaping(folder: Path) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "pytorch_model.bin")


def truncated(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])


def surplus(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS) | {"score.weight": torch.zeros(2, 64)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def more_layers(folder: Path) -> None:
    change(folder / "config.json", num_hidden_layers=1)


def untold_biases(folder: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.bias"
    tensors = load_file(folder / WEIGHTS) | {name: torch.ones(64)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")


def without_type(folder: Path) -> None:
    change(folder / "config.json", model_type=None)


def wrote(name: str, content: bytes) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return write


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (missing, r"model-00002-of-00002\.safetensors is missing, and model\.safetensors\.index"),
    (swapped, r"model\.norm\.weight is in model-0000\d.*, and .* puts it into model-0000\d"),
    (doubled, r"is in model-00001-of-00002.safetensors and in model-00002-of-00002.safetensors"),
    (unlisted, r"model\.norm\.weight is in model-.*, and .* puts it into none of them"),
    (without_index, r"neither model\.safetensors nor .*add the index of model-00001-of-00002"),
    (escaping, r"puts a into '\.\./x\.safetensors'"),
    (pickled, r"convert them with transformers' save_pretrained"),
    (truncated, r"model\.safetensors \(\d+ bytes\) is truncated"),
    (surplus, r"tensors that llama has no place for: score\.weight"),
    (more_layers, r"no place for: model\.layers\.1\..* and \d more"),
    (untold_biases, r"no place for: model\.layers\.0\.self_attn\.q_proj\.bias"),
    (adapter, r"adapter_config\.json: merge the adapter"),
    (without_type, r"config\.json has no model_type"),
    (wrote("tokenizer.json", b"{}"), r"tokenizer\.json cannot be read"),
    (wrote("model.safetensors.index.json", b"[]"), "holds a JSON list, not an object"),
    *(
        (wrote(name, POINTER), rf"{name} is a Git LFS pointer.*git lfs pull")
        for name in (WEIGHTS, "config.json", "tokenizer.json", "tokenizer_config.json",
                     "generation_config.json", "tokenizer.model", "vocab.json", "merges.txt")
    ),
    *(
        (wrote(name, b"<html>"), rf"{name} is not JSON")
        for name in ("config.json", "tokenizer.json", "generation_config.json",
                     "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    ),
    *(
        (wrote(name, b""), rf"{name} is empty")
        for name in (WEIGHTS, "config.json", "tokenizer.json", "chat_template.jinja")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_refusals_are_one_line(spoil: Callable[[Path], None], message: str, folder: Path) -> None:
    spoil(folder)
    with pytest.raises(ExportError, match=message) as raised:
        open_source(folder)
    assert "\n" not in str(raised.value)


def test_refusals_name_a_file_of_a_sharded_model(folder: Path) -> None:
    (folder / shard(folder)[0]).write_bytes(POINTER)
    with pytest.raises(ExportError, match=r"model-00001-of-00002\.safetensors is a Git LFS"):
        open_source(folder)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("model.layers.0.self_attn.rotary_emb.inv_freq", {"model_type": "llama"}),
        ("model.rotary_emb.inv_freq", {"model_type": "llama"}),
        ("transformer.h.1.attn.bias", {"model_type": "gpt2", "head_dim": None}),
        ("transformer.h.1.attn.masked_bias", {"model_type": "gpt2", "head_dim": None}),
        ("gpt_neox.layers.0.attention.bias", {"model_type": "gpt_neox", "head_dim": None}),
        ("gpt_neox.layers.0.attention.masked_bias", {"model_type": "gpt_neox", "head_dim": None}),
    ],
)
def test_harmless_tensors(name: str, family: dict[str, Any], tmp_path: Path) -> None:
    """Those that transformers does not load either."""
    folder = write_checkpoint(tmp_path / "tiny", **family)
    tensors = load_file(folder / WEIGHTS) | {name: torch.ones(8)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    check(folder)


def test_heads_for_more_tokens_are_told_of(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS) | {"mtp.fc.weight": torch.ones(8)}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    check(folder)
    assert open_source(folder).ignored == ("mtp.fc.weight",)


CODE = """
import os, pathlib
pathlib.Path(os.environ["MARKER"]).touch()
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class OwnConfig(LlamaConfig): pass
class OwnForCausalLM(LlamaForCausalLM): pass
class OwnTokenizer(PreTrainedTokenizerFast): pass
"""
AUTO_MAP = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
OWN_TOKENIZER = {
    "tokenizer_class": "OwnTokenizer",
    "auto_map": {"AutoTokenizer": [None, "own.OwnTokenizer"]},
}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that a folder's code makes."""
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules")
    )
    return tmp_path / "marker"


def with_code(folder: Path, kind: str) -> None:
    (folder / "own.py").write_text(CODE)
    if kind == "tokenizer":
        change(folder / "tokenizer_config.json", **OWN_TOKENIZER)
    else:
        changed = {"model_type": "own"} if kind == "unknown" else {}
        change(folder / "config.json", auto_map=AUTO_MAP, **changed)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("unknown", r"architecture 'own' is not supported: .*code that comes with weights"),
        ("known", r"its own code, own\.OwnForCausalLM, is the model .*is never run"),
    ],
)
def test_code_of_a_folder_is_never_run(
    kind: str, message: str, folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though whoever is asked would say yes."""
    with_code(folder, kind)
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    attempts: list[Callable[[], object]] = [
        lambda: open_source(folder),
        lambda: plan_export(folder, "x.bundle"),
    ]
    for attempt in attempts:
        with pytest.raises(ExportError, match=message):
            attempt()
    assert not asked
    assert not marker.exists()
    transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    assert marker.exists()  # that is what the folder would do


@pytest.mark.parametrize("whole", [True, False])
def test_code_of_a_tokenizer_is_never_run(
    whole: bool, folder: Path, marker: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer.json says it all; without one it is refused."""
    with_code(folder, "tokenizer")
    asked = []
    monkeypatch.setattr("builtins.input", lambda *text: asked.append(text) or "y")
    if whole:
        assert folder_tokenizer(folder, 260) is not None
    else:
        found = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(found["vocab"]))
        (folder / "merges.txt").write_text("")
        with pytest.raises(ExportError, match="cannot be read"):
            folder_tokenizer(folder, 260)
    assert not asked
    assert not marker.exists()
    if whole:
        transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
        assert marker.exists()  # that is what the folder would do


def test_a_known_model_with_code_beside_it_is_read_by_transformers(
    folder: Path, marker: Path
) -> None:
    """As Phi-3's are: the code's class is the library's by name."""
    (folder / "own.py").write_text(CODE)
    named = {"AutoConfig": "own.LlamaConfig", "AutoModelForCausalLM": "own.LlamaForCausalLM"}
    change(folder / "config.json", auto_map=named)
    tokenizer = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    change(folder / "tokenizer_config.json", auto_map=tokenizer)
    tensors = open_source(folder)
    assert tensors.tokenizer is not None
    assert type(tensors.config) is transformers.LlamaConfig
    assert not marker.exists()


def test_every_call_says_that_code_is_not_run() -> None:
    """from_pretrained asks on the terminal where it is not told."""
    root = Path(__file__).parents[1]
    calls = ("from_pretrained(", ".from_config(")
    seen = 0
    for top in ("specplug", "export", "engines", "benchmarks", "examples", "scripts"):
        for path in (root / top).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            for call in calls:
                for rest in text.split(call)[1:]:
                    depth, end = 1, 0
                    while depth:
                        depth += {"(": 1, ")": -1}.get(rest[end], 0)
                        end += 1
                    told = "trust_remote_code=False" in rest[:end]
                    assert told, (path, rest[:end])
                    seen += 1
    assert seen >= 5


UNUSABLE = {
    "{% for x in %}": "does not parse",
    "{{ messages | nonsense }}": "does not parse",
    "{{ ''.__class__.__mro__ }}": "cannot be used",
    "{{ [[1]] | sum(start=[]) }}": "cannot be used",
}


@pytest.mark.parametrize("template", UNUSABLE)
def test_templates_that_cannot_be_used_are_refused(template: str, folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ExportError, match=UNUSABLE[template]):
        open_source(folder)


def test_a_template_may_refuse_a_conversation() -> None:
    check_template("{{ raise_exception('a system message is needed') }}", {})
    check_template("{{ messages[7].content.x }}", {})


@pytest.mark.parametrize("configured", [True, False])
@pytest.mark.parametrize("beside", [(), ("jinja",), ("json",), ("jinja", "json")])
def test_the_chat_template_is_transformers(
    beside: tuple[str, ...], configured: bool, folder: Path
) -> None:
    change(folder / "tokenizer_config.json", chat_template="configured" if configured else None)
    if "jinja" in beside:
        (folder / "chat_template.jinja").write_text("of jinja")
    if "json" in beside:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": "of json"}))
    judge = transformers.AutoTokenizer.from_pretrained(folder).chat_template
    found = folder_tokenizer(folder, 260)
    assert found is not None
    assert found.chat_template == (judge or ("of json" if "json" in beside else None))


def test_of_several_templates_the_default_is_taken(folder: Path) -> None:
    named = [{"name": "default", "template": CHAT_TEMPLATE}, {"name": "rag", "template": "x"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    found = folder_tokenizer(folder, 260)
    assert found is not None
    assert found.chat_template == CHAT_TEMPLATE
    change(folder / "tokenizer_config.json", chat_template=named[1:])
    with pytest.raises(ExportError, match="chat templates of the names rag, and none of the"):
        folder_tokenizer(folder, 260)
