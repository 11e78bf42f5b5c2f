"""Tiny GGUF models against llama.cpp's logits: every architecture, and metadata that matters.

``tests/data/llama/logits.json`` holds the logits (``tests/golden/make_llama.py``).
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from specplug import ExportError
from specplug.export import export_bundle
from specplug.export.gguf import ARCHITECTURES, TENSORS, open_gguf
from specplug.export.gguf_keys import NEUTRAL, READ
from specplug.export.source import open_source
from tests_support import llama
from tests_support.llama_models import EVERY, MODELS, TOKENS, VOCABULARY, write_model

REFERENCE = dict(json.loads((llama.REFERENCES / "logits.json").read_bytes()))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_llama_cpps(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", name)
    source = open_gguf(tmp_path / "m.gguf")
    with torch.no_grad():
        logits = source.reference()(torch.tensor([TOKENS])).logits[0].numpy()
    expected = np.frombuffer(base64.b64decode(REFERENCE[name]), np.float32)
    np.testing.assert_allclose(logits[::EVERY], expected.reshape(-1, VOCABULARY), atol=1e-4)


def test_the_models_tell_the_keys_apart() -> None:
    """Whatever is read changes the logits; what is neutral does not."""
    same = {"llama", "llama, no scaling", "llama, arrays"}
    found: dict[str, set[str]] = {}
    for name, logits in REFERENCE.items():
        found.setdefault(logits, set()).add(name)
    groups = [names for names in found.values() if len(names) > 1]
    assert same in groups
    assert {"llama, scale_linear", "llama, factor without a type"} in groups
    assert len(groups) == 2
    assert {model["arch"] for model in MODELS.values()} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ["llama, all biases", "llama 3", "qwen3"])
def test_the_graph_is_exported(name: str, tmp_path: Path) -> None:
    write_model(tmp_path / "m.gguf", name)
    made = export_bundle(tmp_path / "m.gguf", tmp_path / "m.bundle", precision="fp32")
    assert max(made.target.parity.model_dump().values()) < 1e-4


def refused(
    tmp_path: Path, message: str, tensors: dict[str, Any] | None = None, **keys: Any
) -> None:
    """A file of Llama with other metadata or tensors (None: without) is refused."""
    path = tmp_path / "m.gguf"
    write_model(
        path, "llama", keys={k.replace("__", "."): v for k, v in keys.items()}, more=tensors
    )
    with pytest.raises(ExportError, match=rf"^m\.gguf .*{message}"):
        open_gguf(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.causal", False),
        ("attention.value_length", 8),
        ("attention.sliding_window", 256),
        ("attention.scale", 0.3),
        ("attention.clamp_kqv", 8.0),
        ("rope.dimension_count", 8),
        ("rope.scaling.yarn_log_multiplier", 0.1),
        ("rope.scaling.alpha", 1000.0),
        ("logit_scale", 0.5),
        ("residual_scale", 0.22),
        ("embedding_scale", 12.0),
        ("final_logit_softcapping", 30.0),
        ("expert_count", 8),
        ("expert_used_count", [2, 2]),
        ("pooling_type", 3),
        ("nextn_predict_layers", 1),
        ("use_parallel_residual", True),
        ("embedding_length_out", 128),
    ],
)
def test_a_value_that_makes_another_model_is_refused(key: str, value: Any, tmp_path: Path) -> None:
    refused(
        tmp_path, rf"llama\.{key} = .*, which is not supported: only ", **{f"llama.{key}": value}
    )


def test_what_else_makes_another_model_is_refused(tmp_path: Path) -> None:
    unknown = "is not supported: it is not known"
    refused(tmp_path, rf"llama\.ssm\.state_size = 16, which {unknown}", llama__ssm__state_size=16)
    refused(tmp_path, f"adapters.count = 2, which {unknown}", llama__adapters__count=2)
    refused(tmp_path, rf"tokenizer\.ggml\.new = 1, which {unknown}", **{"tokenizer.ggml.new": 1})
    refused(
        tmp_path,
        r"suppress_tokens = \[3\], .* only \[\]",
        **{"tokenizer.ggml.suppress_tokens": [3]},
    )
    refused(tmp_path, "is one of 3 parts of a model: join them .*--merge", split__count=3)
    refused(tmp_path, "is an adapter: merge it", adapter__type="lora")
    refused(tmp_path, "is an adapter: merge it", general__type="adapter")
    refused(tmp_path, "general.type = 'mmproj', and only 'model'", general__type="mmproj")
    refused(
        tmp_path,
        "tokens has 40, and token_embd.weight 39 rows",
        {"token_embd.weight": np.zeros((39, 64), np.float32)},
    )
    refused(
        tmp_path,
        "llama.feed_forward_length is .*, and one number is read",
        llama__feed_forward_length=[96, 64],
    )
    scaling = "llama.rope.scaling."
    refused(tmp_path, "'longrope' is not supported: have none", **{scaling + "type": "longrope"})
    refused(tmp_path, "attn_factor 0.5 is supported with yarn", **{scaling + "attn_factor": 0.5})
    refused(tmp_path, "missing", {"blk.1.ffn_up.weight": None})


def test_tensors_without_a_place_are_refused(tmp_path: Path) -> None:
    ones = np.ones(64, np.float32)
    for name in (
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_norm.bias",
        "blk.0.attn_q.scale",
        "blk.7.ffn_down.weight",
        "blk.0.ffn_gate_inp.weight",
        "output.bias",
        "cls.weight",
    ):
        refused(tmp_path, rf"has no place for|{name} has no place in", {name: ones})
    divisors = np.linspace(1, 9, 8, dtype=np.float32)
    refused(tmp_path, "no scaling of Llama 3 gives", {"rope_freqs.weight": divisors})
    refused(tmp_path, "has 64 values for 16 / 2", {"rope_freqs.weight": ones})
    refused(
        tmp_path,
        "beside a scaling of type linear",
        {"rope_freqs.weight": divisors},
        **{"llama.rope.scaling.factor": 2.0},
    )


def test_keys_that_describe_the_file_change_nothing(tmp_path: Path) -> None:
    write_model(tmp_path / "plain.gguf", "llama")
    harmless = {
        "general.name": "Tiny",
        "general.tags": ["a", "b"],
        "general.quantization_version": 2,
        "quantize.imatrix.file": "x.dat",
        "mradermacher.quantized_by": "somebody",
        "llama.vocab_size": VOCABULARY,
        "tokenizer.chat_template.tool_use": "{{ messages }}",
        "tokenizer.ggml.mask_token_id": 3,
        "llama.attention.sliding_window": 512,
        "llama.rope.dimension_count": 16,
        "split.count": 1,
    }
    write_model(tmp_path / "more.gguf", "llama", keys=harmless)
    plain, more = open_gguf(tmp_path / "plain.gguf"), open_gguf(tmp_path / "more.gguf")
    assert plain.config.to_dict() == more.config.to_dict()
    assert plain.tokenizer == more.tokenizer


def test_a_later_part_of_a_model_says_so(tmp_path: Path) -> None:
    """It has no architecture."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    del writer.kv_data[0]["general.architecture"]
    writer.add_uint16("split.no", 1)
    writer.add_uint16("split.count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(ExportError, match=r"^m\.gguf is one of 2 parts"):
        open_gguf(tmp_path / "m.gguf")


@pytest.mark.parametrize("name", ["m.GGUF", "sha256-0123", "model.bin"])
def test_a_file_of_another_name_is_read(name: str, tmp_path: Path) -> None:
    """As ollama keeps them."""
    write_model(tmp_path / name, "llama")
    assert open_source(tmp_path / name).config.model_type == "llama"


def test_every_key_that_is_read_is_tried() -> None:
    tried = {key for model in MODELS.values() for key in model}
    always = {"context_length", "embedding_length", "block_count"}
    assert set(READ) <= tried | always
    assert not set(READ) & set(NEUTRAL)
    assert len(set(TENSORS.values())) == len(TENSORS)


def test_live_llama_cpp_gives_these_logits(tmp_path: Path) -> None:
    if not llama.is_there():
        pytest.skip(llama.HOW)
    with llama.judge() as ask:
        for name in MODELS:
            write_model(tmp_path / "m.gguf", name)
            logits = ask({"path": str(tmp_path / "m.gguf"), "tokens": TOKENS})["logits"]
            expected = np.frombuffer(base64.b64decode(REFERENCE[name]), np.float32)
            expected = expected.reshape(-1, VOCABULARY)
            np.testing.assert_allclose(logits[::EVERY], expected, atol=1e-4, err_msg=name)
