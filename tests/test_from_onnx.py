"""Graphs that Optimum and onnxruntime-genai's builder made (tests/data/make_onnx.sh)."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from specplug import Bundle, ExportError, SpeculativeDecoder
from specplug.export.from_onnx import export_onnx
from tests_support.tiny import greedy_tokens, write_checkpoint

DATA = Path(__file__).parent / "data"
PROMPT = list(b"the quick brown fox jumps over the lazy dog")


def decode(bundle: Path, drafter: str, k: int) -> tuple[int, ...]:
    with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=k) as decoder:
        decoder.stop_token_ids = frozenset()
        return decoder.generate(PROMPT, max_tokens=60).token_ids


@pytest.mark.parametrize("name", ["optimum", "genai-fp32"])
def test_text_is_transformers(name: str, foreign_bundles: dict[str, Path], tmp_path: Path) -> None:
    """Of the very checkpoint that the tools were given: random, from a seed."""
    source = write_checkpoint(
        tmp_path / "source",
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    assert list(decode(foreign_bundles[name], "none", 0)) == greedy_tokens(source, PROMPT, 60)


@pytest.mark.parametrize("name", ["optimum", "genai-fp32", "genai-int4"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_speculative_text_is_plain_text(
    name: str, k: int, foreign_bundles: dict[str, Path]
) -> None:
    bundle = foreign_bundles[name]
    assert decode(bundle, "ngram", k) == decode(bundle, "none", 0)


def test_what_the_manifest_says(foreign_bundles: dict[str, Path]) -> None:
    found = {name: Bundle.open(path).manifest for name, path in foreign_bundles.items()}
    assert [found[name].target.dialect for name in found] == ["concat", "ort", "ort"]
    assert [found[name].target.precision for name in found] == ["fp32", "fp32", "int4"]
    for manifest in found.values():
        assert manifest.target.max_length == 1199
        assert max(manifest.target.parity.model_dump().values()) < 1e-5
        assert "model.onnx" in manifest.target.provenance.sha256
        assert manifest.tokenizer is not None
        assert manifest.tokenizer.stop_token_ids == [256]
        assert manifest.tokenizer.chat_template
    # One-row attention is padded where it matters, as in our own graphs.
    assert found["genai-int4"].target.min_width == 1


def test_other_names_of_the_cache(tmp_path: Path) -> None:
    """genai's configuration may name the cache otherwise; the graph then does, too."""
    import onnx

    folder = Path(shutil.copytree(DATA / "genai-fp32", tmp_path / "renamed"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"]["past_key_names"] = "old_keys_%d"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ExportError, match=r"a cache named old_keys_%d, as genai_config\.json has it"
    ):
        export_onnx(folder, tmp_path / "out.bundle")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for layer in range(2):
        old, new = f"past_key_values.{layer}.key", f"old_keys_{layer}"
        next(value for value in model.graph.input if value.name == old).name = new
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    export_onnx(folder, tmp_path / "out.bundle")
    assert decode(tmp_path / "out.bundle", "ngram", 4)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("optimum", lambda f: (f / "config.json").unlink(), "neither a genai_config.json nor"),
        ("optimum", lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        ("optimum", lambda f: (f / "config.json").write_text("{}"), "max_position|n_positions"),
        ("optimum", lambda f: (f / "model.onnx").unlink(), "is missing: export with a cache"),
        ("optimum", lambda f: (f / "model.onnx").write_bytes(b"\0junk"), "cannot be read as ONNX"),
        ("genai-fp32", lambda f: (f / "model.onnx.data").unlink(), "in model.onnx.data, which is"),
    ],
)
def test_refusals(name: str, spoil, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / name, tmp_path / "folder"))
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        export_onnx(folder, tmp_path / "out.bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
