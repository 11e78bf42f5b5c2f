"""Folders as makers publish them: weights in 16 bits, keys and spellings of several years."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from specplug import EngineOptions, Step
from specplug.engines.ort_dialects import DIALECTS
from specplug.export import graphs
from specplug.export.attention import max_entries
from specplug.export.exporter import export_bundle
from specplug.export.folders import WEIGHTS
from specplug.export.source import open_source
from specplug.types import ExportError
from tests_support.published import PUBLISHED

TOKENS = np.arange(40)[None] * 7 % 300


def publish(folder: Path, config: dict[str, Any]) -> Path:
    """Write a random model in 16 bits whose config.json is exactly this."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    read = transformers.AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    made = transformers.AutoModelForCausalLM.from_config(read)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn_like(weight) * 0.2 + (weight.dim() == 1))
    made.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def judged(folder: Path) -> np.ndarray:
    """transformers' logits of the untouched folder, f32[T, V]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        found: np.ndarray = model(torch.from_numpy(TOKENS), return_dict=True).logits[0].numpy()
    return found


def exported(folder: Path, place: Path) -> np.ndarray:
    """Logits of the graph that is made of the folder, f32[T, V]."""
    source = open_source(folder)
    graphs.save(graphs.build_fp32(source), place)
    engine = DIALECTS["ort"](
        place / graphs.GRAPH,
        cache=graphs.cache_layout(graphs.load(place)),
        vocab_size=300,
        max_length=max_entries(source.config),
        min_width=1,
        options=EngineOptions(threads=1),
    )
    return engine.forward(Step(tokens=TOKENS, past=np.array([0]))).logits()[0].copy()


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_folders_export(name: str, tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", PUBLISHED[name])
    expected = judged(folder)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(exported(folder, tmp_path / "graph"), expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float64", None])
def test_the_type_that_a_configuration_names_changes_nothing(
    stored: str | None, tmp_path: Path
) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["Qwen2.5"] | {"torch_dtype": stored})
    np.testing.assert_allclose(
        exported(folder, tmp_path / "graph"), judged(folder), rtol=0, atol=2e-4
    )


def test_a_reference_that_would_answer_with_tuples(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["SmolLM2"])
    config = json.loads((folder / "config.json").read_text()) | {"return_dict": False}
    (folder / "config.json").write_text(json.dumps(config))
    with torch.no_grad():
        found = open_source(folder).reference()(torch.from_numpy(TOKENS)).logits[0].numpy()
    (folder / "config.json").write_text(json.dumps(config | {"return_dict": True}))
    np.testing.assert_allclose(found, judged(folder), rtol=0, atol=1e-5)


VALUES = (None, 0, -1, 1, 10**9, 10**30, 2.5, float("nan"), "x", "", [], [1], {}, {"a": 1}, True)


def test_configurations_of_any_value_are_read_or_refused_in_one_line(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["Llama 3.2"])
    messages: list[str] = []
    keys = [*PUBLISHED["Llama 3.2"], "dtype", "id2label", "layer_types", "base_model_tp_plan"]
    for key in keys:
        for value in VALUES:
            (folder / "config.json").write_text(json.dumps(PUBLISHED["Llama 3.2"] | {key: value}))
            try:
                open_source(folder)
            except ExportError as error:
                messages.append(str(error))
    assert not [message for message in messages if "\n" in message or len(message) < 30]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_hidden_layers": 10**9}, r"1000000000 layers, and the file 20 tensors"),
        ({"max_position_embeddings": 10**9}, r"1000000000 tokens, and 16777216 are the most"),
        ({"max_position_embeddings": 0}, r"may have 0 tokens, and 16 are the fewest"),
        ({"max_position_embeddings": -1}, r"may have -1 tokens, and 16 are the fewest"),
        ({"intermediate_size": 10**9}, r"does not fit llama: .* asks for [\d,]+ parameters, and"),
        ({"vocab_size": 10**12}, r"does not fit llama: .* asks for [\d,]+ parameters, and"),
        ({"head_dim": 20}, r"heads of size 20 .* multiples of 8"),
        ({"rope_scaling": {"type": "mrope"}}, r"it knows no 'mrope'"),
    ],
)
def test_sizes_that_nothing_has_are_refused_at_once(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["SmolLM2"])
    (folder / "config.json").write_text(json.dumps(PUBLISHED["SmolLM2"] | changed))
    with pytest.raises(ExportError, match=message):
        open_source(folder)


def test_a_header_of_weights_that_nothing_has_is_not_parsed(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["SmolLM2"])
    content = (folder / WEIGHTS).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + size].ljust(1 << 25)  # as the format allows
    start = len(header).to_bytes(8, "little")
    (folder / WEIGHTS).write_bytes(start + header + content[8 + size :])
    with pytest.raises(ExportError, match="announces a header of 33,554,432 bytes, and at most"):
        open_source(folder)


def spoil_weight(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, folder / WEIGHTS)


def rename(prefix: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = {prefix + name: held for name, held in load_file(folder / WEIGHTS).items()}
        save_file(tensors, folder / WEIGHTS)

    return spoil


def only_adapter(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")


def only_gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-q8_0.gguf").write_bytes(b"GGUF")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_weight, "logits are not finite: the checkpoint holds NaN"),
        (rename("_orig_mod."), r"missing .*; it holds _orig_mod\.\S+, which has no place"),
        (rename("base_model.model."), r"missing .*; it holds base_model\.model\.\S+, which has"),
        (only_adapter, "but an adapter: merge it"),
        (only_gguf, r"give one of its files, have model-q8_0\.gguf"),
    ],
)
def test_what_is_wrong_is_named(
    spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["SmolLM2"])
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        export_bundle(folder, tmp_path / "out", precision="fp32")
    assert not (tmp_path / "out").exists()


def test_a_file_of_a_folder_is_no_source(tmp_path: Path) -> None:
    folder = publish(tmp_path / "model", PUBLISHED["SmolLM2"])
    with pytest.raises(ExportError, match="give its folder, "):
        open_source(folder / WEIGHTS)


def test_tensors_without_the_models_prefix(tmp_path: Path) -> None:
    """As embedding models are stored; transformers reads them as a language model, too."""
    folder = publish(tmp_path / "model", PUBLISHED["Qwen3"])
    tensors = load_file(folder / WEIGHTS)
    bare = {name.removeprefix("model."): held for name, held in tensors.items()}
    save_file(bare, folder / WEIGHTS, metadata={"format": "pt"})
    np.testing.assert_allclose(
        exported(folder, tmp_path / "graph"), judged(folder), rtol=0, atol=2e-4
    )
