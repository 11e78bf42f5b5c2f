"""Folders as makers publish them: weights in 16 bits, keys and spellings of several years."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from specplug import EngineOptions, Step
from specplug.engines.ort_dialects import DIALECTS
from specplug.export import graphs
from specplug.export.attention import max_entries
from specplug.export.source import open_source
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
