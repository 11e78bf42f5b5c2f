"""Every precision through a whole export, and the options that bend one."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

import pytest

from specplug import Bundle, ExportError, SpeculativeDecoder
from specplug.cli.inspect import inspect
from specplug.export import export_bundle, graphs, precision
from specplug.export.precision import choose_precision
from specplug.export.quality_text import FEWEST_TOKENS
from test_export import PROMPT


@pytest.mark.parametrize(
    ("name", "most_kl", "most_width"),
    [("fp16", 1e-3, 2), ("bf16", 0.05, 2), ("int8", 0.05, 1), ("int4", 2.0, 1)],
)
def test_precision_is_measured_and_decodes(
    name: str, most_kl: float, most_width: int, tiny_source: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "made.bundle"
    target = export_bundle(tiny_source, bundle, precision=name).target
    assert target.precision == name
    assert target.min_width <= most_width
    assert target.quality is not None
    assert 1e-9 < target.quality.mean_kl < most_kl
    texts = []
    for drafter, k in (("none", 0), ("ngram", 4)):
        with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=k) as decoder:
            decoder.stop_token_ids = frozenset()
            texts.append(decoder.generate(PROMPT, max_tokens=40).token_ids)
    assert texts[0] == texts[1]


def test_sixteen_bits_halve_the_file(tiny_source: Path, tiny_bundles, tmp_path: Path) -> None:
    whole = Bundle.open(tiny_bundles["fp32"]).manifest.target
    half = export_bundle(tiny_source, tmp_path / "half.bundle", precision="fp16").target

    def weights(component) -> int:
        return next(file.bytes for file in component.files if file.path.endswith(graphs.DATA))

    # The rotary tables and norms stay in fp32, for which the tiny model has little else.
    assert weights(whole) - weights(half) == 2 * (whole.parameters - 5 * 64)


@pytest.mark.parametrize("name", ["w8a8", "int8", "int4", "fp16"])
def test_kept_layers_are_exact(name: str, tiny_source: Path, tmp_path: Path) -> None:
    """With every layer kept nothing is left to round; with some, less than without."""

    def kl(label: str, keep: str | None) -> float:
        target = export_bundle(tiny_source, tmp_path / label, precision=name, keep_fp32=keep).target
        assert target.keep_fp32 == keep
        assert target.quality is not None
        return target.quality.mean_kl

    assert kl("all", r"layers|lm_head|embed_tokens") < 1e-9
    assert kl("some", r"layers\.0\.|lm_head") < kl("none", None)


def test_keep_fp32_refusals(tiny_source: Path, tmp_path: Path) -> None:
    def refused(message: str, **options) -> None:
        with pytest.raises(ExportError, match=message):
            export_bundle(tiny_source, tmp_path / "refused.bundle", **options)
        assert not list(tmp_path.iterdir())

    refused("no regular expression", precision="int4", keep_fp32="(")
    refused("precision fp32 keeps every layer already", precision="fp32", keep_fp32="lm_head")
    refused(r"'experts' matches no layer: .*q_proj", precision="int4", keep_fp32="experts")


def test_quality_on_ones_own_text(tiny_source: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    text.write_text("Ω is a letter, too. " * 40, encoding="utf-8")
    made = export_bundle(tiny_source, tmp_path / "a", precision="int8", quality_text=text)
    own = made.target.quality
    assert own is not None
    assert own.tokens == len(text.read_bytes())  # one token a byte
    assert own.text_sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    built_in = export_bundle(tiny_source, tmp_path / "b", precision="int8").target.quality
    assert built_in is not None
    sample = files("specplug.export").joinpath("sample.txt").read_bytes()
    assert built_in.text_sha256 == hashlib.sha256(sample).hexdigest()
    assert built_in.mean_kl != own.mean_kl


def test_quality_text_refusals(tiny_source: Path, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"

    def refused(message: str, content: bytes | None) -> None:
        if content is not None:
            text.write_bytes(content)
        with pytest.raises(ExportError, match=message):
            export_bundle(tiny_source, tmp_path / "r", precision="int8", quality_text=text)
        assert not (tmp_path / "r").exists()

    refused("No such file", None)
    refused(f"12 tokens are too few .* at least {FEWEST_TOKENS} tokens", b"twelve bytes")
    refused(r"is not UTF-8: byte 3 is 0xff", b"abc\xff" * 200)


@pytest.mark.parametrize(
    ("flags", "chosen", "reason"),
    [
        ({"avx512_vnni"}, "w8a8", "this CPU has avx512_vnni"),
        ({"sse2"}, "fp32", "no 8-bit dot product"),
        (set(), "fp32", "does not tell which instructions"),
    ],
)
def test_auto_names_what_it_found(
    flags: set[str], chosen: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "_cpu_flags", lambda: flags)
    found, why = choose_precision()
    assert found == chosen
    assert why.startswith(chosen)
    assert reason in why


def test_inspect_shows_what_was_asked_for(
    tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "made.bundle"
    export_bundle(tiny_source, bundle, precision="int4", keep_fp32="down_proj")
    inspect(bundle)
    shown = " ".join(capsys.readouterr().out.split())
    assert "int4, fp32 where 'down_proj' matches" in shown
    assert "640 tokens of the text" in shown
