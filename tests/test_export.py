"""Exports against transformers, on tiny random checkpoints; and everything that is refused."""

from __future__ import annotations

import dataclasses
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType

from specplug import Bundle, ExportError, ParityError, SpeculativeDecoder
from specplug.export import export_bundle, graphs
from specplug.export.precision import choose_precision
from specplug.export.source import open_source
from specplug.export.tokenizer_check import compare_tokenizers
from specplug.staging import staged
from tests_support.tiny import byte_tokenizer, greedy_tokens, write_checkpoint

PROMPT = list(b"the quick brown fox jumps over the lazy dog")


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False, "num_key_value_heads": 4}),
        ("mistral", {"sliding_window": None}),
        ("qwen2", {}),
        ("qwen3", {}),
    ],
)
def test_text_is_transformers(family: str, config: dict, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", model_type=family, **config)
    bundle = tmp_path / "made.bundle"
    manifest = export_bundle(source, bundle, precision="fp32")
    assert max(manifest.target.parity.model_dump().values()) < 1e-4
    with SpeculativeDecoder.from_bundle(bundle, drafter="ngram", draft_tokens=4) as decoder:
        decoder.stop_token_ids = frozenset()
        result = decoder.generate(PROMPT, max_tokens=40)
    assert list(result.token_ids) == greedy_tokens(source, PROMPT, 40)


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "int4"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_text_is_plain_decodings(tiny_bundles: dict[str, Path], precision: str, k: int) -> None:
    bundle = tiny_bundles[precision]
    with SpeculativeDecoder.from_bundle(bundle, drafter="none") as plain:
        plain.stop_token_ids = frozenset()
        expected = plain.generate(PROMPT, max_tokens=60).token_ids
    for drafter in ("ngram", "draft") if precision == "fp32" else ("ngram",):
        with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=k) as decoder:
            decoder.stop_token_ids = frozenset()
            result = decoder.generate(PROMPT, max_tokens=60)
        assert result.token_ids == expected
        if drafter == "draft":
            assert result.stats.drafted > 0


def test_gguf_gives_the_same_graph_as_the_folder(tiny_source: Path, tmp_path: Path) -> None:
    """The container, llama.cpp's row order, and the tokenizer, through a file written by gguf."""
    path = tmp_path / "tiny.gguf"
    write_gguf(tiny_source, path)
    from_gguf, from_folder = open_source(path), open_source(tiny_source)
    assert set(from_gguf.weights) == set(from_folder.weights)
    for name, tensor in from_folder.weights.items():
        torch.testing.assert_close(from_gguf.weights[name], tensor, rtol=0, atol=0)
    tokens = torch.arange(40)[None]
    with torch.no_grad():
        expected = from_folder.reference()(tokens).logits
        torch.testing.assert_close(from_gguf.reference()(tokens).logits, expected)
    manifest = export_bundle(path, tmp_path / "gguf.bundle", precision="w8a8")
    assert manifest.target.provenance.licence == "apache-2.0"
    assert set(manifest.target.provenance.sha256) == {"tiny.gguf"}
    assert manifest.tokenizer is not None
    assert manifest.tokenizer.stop_token_ids == [256]


def write_gguf(
    folder: Path,
    path: Path,
    kind: Callable[[str], GGMLQuantizationType] = lambda name: GGMLQuantizationType.F32,
) -> None:
    """What llama.cpp's converter writes for a Llama checkpoint: rotated pairs as neighbours.

    ``kind`` gives the type of a matrix from its name in the file.
    """
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, weights = model.config, model.state_dict()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    ids = byte_tokenizer().get_vocab()
    vocabulary = sorted(ids, key=ids.__getitem__)
    vocabulary[-1] = "ab"  # for the one merge that a GGUF tokenizer must have
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([1] * 256 + [3] * (len(vocabulary) - 257) + [1])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(256)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in weights.items():
        if name == "lm_head.weight":
            continue
        array = tensor.numpy()
        for part, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
            if f"{part}_proj" in name:
                halves = array.reshape(heads, 2, config.head_dim // 2, -1)
                array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        written = names.get_name(name, try_suffixes=(".weight",))
        stored = kind(written) if array.ndim == 2 else GGMLQuantizationType.F32
        writer.add_tensor(written, gguf.quants.quantize(array, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_wrong_graph_is_refused(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = graphs.build_fp32

    def perturbed(source, dialect, hidden):
        weight = source.weights["model.layers.1.mlp.up_proj.weight"]
        source.weights["model.layers.1.mlp.up_proj.weight"] = weight * 1.01
        return build(source, dialect, hidden)

    monkeypatch.setattr(graphs, "build_fp32", perturbed)
    with pytest.raises(ParityError, match=r"differ from the source's by .* in prefill"):
        export_bundle(tiny_source, tmp_path / "wrong.bundle", precision="fp32")
    assert not list(tmp_path.iterdir())


def test_a_wrong_window_is_found_far_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_checkpoint(tmp_path / "source", model_type="mistral", sliding_window=300)
    export_bundle(source, tmp_path / "right.bundle", precision="fp32")
    read = graphs.read_attention

    def forgetful(config):
        return [dataclasses.replace(layer, window=None) for layer in read(config)]

    monkeypatch.setattr(graphs, "read_attention", forgetful)
    with pytest.raises(ParityError, match="in prefill"):
        export_bundle(source, tmp_path / "wrong.bundle", precision="fp32")


def test_draft_from_another_source(tiny_source: Path, tmp_path: Path) -> None:
    small = write_checkpoint(tmp_path / "small", seed=1, num_hidden_layers=1)
    bundle = tmp_path / "pair.bundle"
    manifest = export_bundle(tiny_source, bundle, precision="fp32", draft=small)
    assert manifest.draft is not None
    assert manifest.draft.cache.layers == 1
    with SpeculativeDecoder.from_bundle(bundle, drafter="draft", draft_tokens=3) as decoder:
        decoder.stop_token_ids = frozenset()
        tokens = decoder.generate(PROMPT, max_tokens=30).token_ids
    assert list(tokens) == greedy_tokens(tiny_source, PROMPT, 30)


@pytest.mark.parametrize(("target_size", "draft_size"), [(260, 288), (288, 260)])
def test_draft_with_another_padding(target_size: int, draft_size: int, tmp_path: Path) -> None:
    """Rows of the embedding table beyond the tokenizer's 260 tokens are padding."""
    target = write_checkpoint(tmp_path / "target", vocab_size=target_size)
    draft = write_checkpoint(tmp_path / "draft", vocab_size=draft_size, seed=1, num_hidden_layers=1)
    bundle = tmp_path / "pair.bundle"
    export_bundle(target, bundle, precision="fp32", draft=draft)
    texts = []
    for drafter, drafted in (("none", "auto"), ("draft", 4)):
        with SpeculativeDecoder.from_bundle(
            bundle, drafter=drafter, draft_tokens=drafted
        ) as decoder:
            decoder.stop_token_ids = frozenset()
            result = decoder.generate(PROMPT, max_tokens=40)
            texts.append(result.token_ids)
    assert texts[0] == texts[1]
    assert result.stats.drafted > 0


def test_end_tokens_without_a_tokenizer(tmp_path: Path) -> None:
    """What the configurations say of them is kept, in bundles of token ids alone."""
    source = write_checkpoint(tmp_path / "source", eos_token_id=[7, 9])
    for file in source.glob("tokenizer*"):
        file.unlink()
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": 11}))
    export_bundle(source, tmp_path / "p.bundle", precision="fp32")
    with SpeculativeDecoder.from_bundle(tmp_path / "p.bundle") as decoder:
        assert decoder.tokenizer is None
        assert decoder.stop_token_ids == {7, 9, 11}
    bundle = Bundle.open(tmp_path / "p.bundle")
    assert compare_tokenizers(bundle, source)[0] is None
    (source / "generation_config.json").unlink()
    assert compare_tokenizers(bundle, source)[0] is False


def test_draft_of_another_size_without_tokenizers_is_refused(tmp_path: Path) -> None:
    folders = []
    for size in (260, 288):
        folders.append(write_checkpoint(tmp_path / str(size), vocab_size=size))
        for file in folders[-1].glob("tokenizer*"):
            file.unlink()
    with pytest.raises(ExportError, match="draft vocabulary 288 != target vocabulary 260, and"):
        export_bundle(folders[0], tmp_path / "p.bundle", precision="fp32", draft=folders[1])


def test_refusals(tiny_source: Path, tmp_path: Path) -> None:
    def refused(message: str, source: Path, **options) -> None:
        with pytest.raises(ExportError, match=message):
            export_bundle(source, tmp_path / "refused.bundle", **options)
        assert not list(tmp_path.glob("*refused*"))

    refused("does not exist: give a .gguf file, a Hugging Face folder, or a Hub", tmp_path / "none")
    refused("neither a .gguf file nor a folder with a config.json", tmp_path)
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"GGUF\x03\x00\x00\x00 and then nothing of use" * 3)
    refused("junk.gguf cannot be read as GGUF", junk)
    refused("exclude one another", tiny_source, draft=tiny_source, self_draft="int4")
    refused("the target's own precision", tiny_source, precision="int4", self_draft="int4")
    pickled = Path(shutil.copytree(tiny_source, tmp_path / "pickled"))
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    refused("pickled weights .* are not read", pickled)
    foreign = write_checkpoint(tmp_path / "foreign", model_type="gptj", intermediate_size=None)
    refused("architecture 'gptj' is not supported: mobius-onnx 0.1.0 builds its rotation", foreign)


def test_existing_bundle_is_kept_unless_forced(tiny_bundles, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(tiny_bundles["int4"], tmp_path / "kept.bundle"))
    with (
        pytest.raises(ExportError, match="exists: choose another name, or replace it with --force"),
        staged(bundle, replace=False),
    ):
        pytest.fail("must not be reached")
    with pytest.raises(OSError, match="the disk fails"):
        _fail_inside(bundle)
    Bundle.open(bundle)  # as it was
    assert [path.name for path in tmp_path.iterdir()] == ["kept.bundle"]
    precious = tmp_path / "thesis"
    precious.mkdir()
    with (
        pytest.raises(ExportError, match="is no bundle: it is not replaced"),
        staged(precious, replace=True),
    ):
        pytest.fail("must not be reached")


def _fail_inside(bundle: Path) -> None:
    with staged(bundle, replace=True) as stage:
        (stage / "half").write_text("written")
        raise OSError(errno.EIO, "the disk fails")


def test_auto_precision_gives_its_reason() -> None:
    precision, reason = choose_precision()
    assert reason.startswith(precision)
    assert "CPU" in reason


def test_exporting_twice_gives_identical_bytes(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(20_000 * 24 * 3600))
    once, again = tmp_path / "once.bundle", tmp_path / "again.bundle"
    for bundle in (once, again):
        export_bundle(tiny_source, bundle, precision="w8a8", self_draft="int4")
    files = [path.relative_to(once) for path in once.rglob("*") if path.is_file()]
    assert len(files) == 6
    for path in files:
        assert (again / path).read_bytes() == (once / path).read_bytes(), path.name
    assert Bundle.open(once).manifest.target.provenance.date == "2024-10-04"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ExportError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        export_bundle(tiny_source, tmp_path / "other.bundle", precision="w8a8")
