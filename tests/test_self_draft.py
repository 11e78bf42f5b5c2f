"""Drafting with the target itself: layers skipped, rounded coarser."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specplug import BundleError, ExportError, SamplingParams, SpeculativeDecoder
from specplug.export import export_bundle
from specplug.export.self_draft import parse_self_draft, with_layers
from specplug.export.source import open_source
from tests_support.tiny import greedy_tokens, write_checkpoint

PROMPT = list(b"the quick brown fox")
SAMPLED = SamplingParams(temperature=0.8, seed=4)


@given(
    st.sampled_from([None, "int4", "fp16", "w8a8"]),
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=4),
)
def test_what_is_written_is_read(precision: str | None, steps: list[tuple[int, int]]) -> None:
    """Ranges of layers, each after a gap."""
    layers: list[int] = []
    parts = []
    for gap, length in steps:
        first = (layers[-1] + 1 if layers else 0) + gap
        layers += range(first, first + length + 1)
        parts.append(f"{first}-{first + length}" if length else str(first))
    if not parts and precision is None:
        return
    text = f"layers={','.join(parts)}" if parts else ""
    found = parse_self_draft(":".join(filter(None, [precision, text])))
    assert found.precision == precision
    assert found.layers == (tuple(layers) or None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int5", "give a precision"),
        ("layers=", "list layers once each"),
        ("layers=3-1", "list layers once each"),
        ("layers=0-3,2", "list layers once each"),
        ("layers=x", "'x' is no layer"),
        ("layers=1-", "'1-' is no layer"),
        ("int4,layers=1", "give a precision"),
        ("layers=99999999999", "no layer"),
    ],
)
def test_what_reads_as_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        parse_self_draft(text)


def test_layers_are_those_of_transformers(tmp_path: Path) -> None:
    """Skipping layers of the module itself gives the same logits; sliding ones stay theirs."""
    kinds = ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    path = write_checkpoint(
        tmp_path / "source",
        model_type="gemma3_text",
        num_hidden_layers=4,
        layer_types=kinds,
        sliding_window=8,
    )
    source = open_source(path)
    cut = with_layers(source, (0, 3))
    assert cut.config.layer_types == ["sliding_attention", "sliding_attention"]
    whole = source.reference()
    whole.model.layers = torch.nn.ModuleList([whole.model.layers[0], whole.model.layers[3]])
    whole.config.layer_types = cut.config.layer_types
    whole.config.num_hidden_layers = 2
    tokens = torch.arange(30)[None]
    with torch.no_grad():
        expected = whole(tokens, use_cache=False).logits
        torch.testing.assert_close(cut.reference()(tokens, use_cache=False).logits, expected)


@pytest.mark.parametrize("how", ["layers=0,2", "int4:layers=0-1"])
def test_a_bundle_drafts_with_some_of_its_layers(how: str, tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source", num_hidden_layers=3)
    bundle = tmp_path / "made.bundle"
    manifest = export_bundle(source, bundle, precision="fp32", self_draft=how)
    assert manifest.draft is not None
    assert manifest.draft.cache.layers == 2
    assert manifest.draft.precision == ("int4" if "int4" in how else "fp32")
    with SpeculativeDecoder.from_bundle(bundle, drafter="draft", draft_tokens=4) as decoder:
        decoder.stop_token_ids = frozenset()
        result = decoder.generate(PROMPT, max_tokens=30)
    assert list(result.token_ids) == greedy_tokens(source, PROMPT, 30)
    assert result.stats.drafted > 0


def test_it_shares_weights_and_cache_with_the_target(tmp_path: Path) -> None:
    """Layers skipped: one weight file, one cache, and no call for the prompt."""
    source = write_checkpoint(tmp_path / "source", num_hidden_layers=3)
    bundle = tmp_path / "made.bundle"
    manifest = export_bundle(source, bundle, precision="w8a8", self_draft="layers=0,2")
    assert manifest.draft is not None
    assert manifest.draft.layers == [0, 2]
    data = [file.path for file in manifest.draft.files if file.path.endswith(".data")]
    assert data == [file.path for file in manifest.target.files if file.path.endswith(".data")]
    assert len([*bundle.rglob("*.data")]) == 1
    plain = SpeculativeDecoder.from_bundle(bundle, drafter="none")
    wanted = plain.generate(PROMPT * 30, max_tokens=60, sampling=SAMPLED).token_ids
    with SpeculativeDecoder.from_bundle(bundle, drafter="self", draft_tokens=3) as decoder:
        draft = decoder.drafter.engine  # type: ignore[attr-defined]
        assert draft.spec.shares_cache
        widths = []
        forward = draft.forward
        draft.forward = lambda step: widths.append(step.tokens.shape[1]) or forward(step)
        result = decoder.generate(PROMPT * 30, max_tokens=60, sampling=SAMPLED)
        assert draft.cache is decoder.target.cache  # type: ignore[attr-defined]
        assert draft.cache.entries.shape[4] > 600  # it grew under both
    assert result.token_ids == wanted
    assert result.stats.accepted
    assert set(widths) == {draft.spec.min_width}


def test_a_coarser_self_draft_shares_the_cache(tmp_path: Path, tiny_source: Path) -> None:
    bundle = tmp_path / "made.bundle"
    manifest = export_bundle(tiny_source, bundle, precision="fp32", self_draft="int4")
    assert manifest.draft is not None
    assert manifest.draft.layers == [0, 1]
    with SpeculativeDecoder.from_bundle(bundle, drafter="self", draft_tokens=4) as decoder:
        decoder.stop_token_ids = frozenset()
        result = decoder.generate(PROMPT, max_tokens=40)
        assert decoder.drafter.engine.spec.shares_cache  # type: ignore[attr-defined]
    assert list(result.token_ids) == greedy_tokens(tiny_source, PROMPT, 40)
    assert result.stats.accepted


def test_a_bundle_without_one_says_so(tiny_bundles: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"no draft that is the target itself.*--self-draft"):
        SpeculativeDecoder.from_bundle(tiny_bundles["w8a8"], drafter="self")


def test_layers_that_are_not_there(tiny_source: Path, tmp_path: Path) -> None:
    for how in ("layers=0-2", "layers=0-1"):
        with pytest.raises(ExportError, match="the model has 2 layers, 0 to 1; keep fewer than"):
            export_bundle(tiny_source, tmp_path / "no.bundle", precision="fp32", self_draft=how)
    assert not list(tmp_path.iterdir())
