"""Opening a bundle trusts nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specplug import Bundle, BundleError, SpeculativeDecoder
from specplug.bundle import MANIFEST, Manifest


@pytest.fixture
def copy(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))


def edit(bundle: Path, **changes: Any) -> None:
    """Set values of the manifest by dotted path, ``__`` for a dot."""
    data = json.loads((bundle / MANIFEST).read_text())
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = data
        for name in parents:
            place = place[int(name)] if isinstance(place, list) else place[name]
        place[int(last) if isinstance(place, list) else last] = value
    (bundle / MANIFEST).write_text(json.dumps(data))


def test_manifest_says_what_was_measured(opened: Bundle) -> None:
    target, draft = opened.manifest.target, opened.manifest.draft
    assert target.precision == "fp32"
    assert target.min_width == 2
    assert target.quality is not None
    assert target.quality.top1_agreement == 1.0
    assert target.quality.perplexity_ratio == pytest.approx(1, abs=1e-4)
    assert draft is not None
    assert draft.precision == "int4"
    assert draft.min_width == 1
    assert draft.cache.spare == 1
    assert draft.quality is not None
    assert 0 < draft.quality.mean_kl < 5
    assert set(target.provenance.tools) >= {"specplug", "mobius-onnx", "onnxruntime"}
    assert all(len(digest) == 64 for digest in target.provenance.sha256.values())
    assert opened.manifest.tokenizer is not None
    assert opened.manifest.tokenizer.stop_token_ids == [256]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema_version": 2}, "schema version 2 and this specplug reads 1"),
        ({"target__files__0__path": "../model.onnx"}, "not a relative path inside"),
        ({"target__files__0__path": "/etc/passwd"}, "not a relative path inside"),
        ({"target__files__0__path": "C:\\model"}, "not a relative path inside"),
        ({"target__files__0__bytes": 3}, "bytes, the manifest says 3"),
        ({"target__files__1__sha256": "0" * 64}, "was changed: its SHA-256"),
        ({"target__files__1__sha256": "xyz"}, "damaged at target.files.1.sha256"),
        ({"target__files__0__path": "target/none.onnx"}, "not among the component's files"),
        ({"tokenizer__file__path": "none.json"}, "none.json is missing"),
        ({"target__min_width": 0}, "damaged at target.min_width"),
        ({"target__max_length": 10**30}, "damaged at target.max_length"),
        ({"target__vocab_size": "260"}, "damaged at target.vocab_size"),
        (
            {"draft__vocab_size": 999, "tokenizer": None},
            "draft vocabulary 999 != target vocabulary 260",
        ),
        ({"target__surprise": 1}, "damaged at target.surprise"),
        ({"tokenizer__stop_token_ids": [256, 260]}, r"stop token 260 is not in \[0, 260\)"),
        ({"tokenizer__stop_token_ids": [-1]}, r"stop token -1 is not in \[0, 260\)"),
        ({"stop_token_ids": [10**12]}, r"stop token 1000000000000 is not in \[0, 260\)"),
        ({"tokenizer__chat_template": "{% if %}"}, "chat template does not parse"),
    ],
)
def test_tampering_is_named(copy: Path, changes: dict[str, Any], message: str) -> None:
    edit(copy, **changes)
    with pytest.raises(BundleError, match=message):
        Bundle.open(copy).tokenizer()


def test_changed_weights_are_found(copy: Path) -> None:
    data = copy / "target" / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(BundleError, match=r"target/model\.onnx\.data was changed"):
        SpeculativeDecoder.from_bundle(copy)


def test_links_out_of_the_folder_are_not_followed(copy: Path, tmp_path: Path) -> None:
    inside, outside = copy / "tokenizer.json", tmp_path / "outside.json"
    inside.rename(outside)
    inside.symlink_to(outside)
    with pytest.raises(BundleError, match=r"tokenizer\.json points outside"):
        Bundle.open(copy)


def test_folder_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle: it has no specplug\.json; make one"):
        Bundle.open(tmp_path)


@given(st.binary(max_size=200) | st.just(b"[" * 100_000) | st.just(b" " * (1 << 20) + b"{}"))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_give_a_bundle_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=MANIFEST):
        Bundle.open(tmp_path)


def test_manifest_survives_writing(opened: Bundle) -> None:
    text = opened.manifest.model_dump_json()
    assert Manifest.model_validate_json(text) == opened.manifest


def test_drafter_needs_a_draft(tiny_bundles: dict[str, Path]) -> None:
    with pytest.raises(BundleError, match=r"holds no draft model: export it with --draft"):
        SpeculativeDecoder.from_bundle(tiny_bundles["int4"], drafter="draft")
    with pytest.raises(ValueError, match="drafter 'magic' is none of none, ngram, suffix"):
        SpeculativeDecoder.from_bundle(tiny_bundles["int4"], drafter="magic")


def test_the_format_is_documented() -> None:
    """Every field of the manifest, and every value a field can be chosen from."""
    text = (Path(__file__).parent.parent / "docs" / "FORMAT.md").read_text()
    schema = json.dumps(Manifest.model_json_schema())
    definitions = json.loads(schema)["$defs"] | {"Manifest": json.loads(schema)}
    names = {name for part in definitions.values() for name in part["properties"]}
    values = {
        value
        for part in definitions.values()
        for field in part["properties"].values()
        for value in field.get("enum", [])
    }
    assert {"min_width", "spare", "text_sha256"} <= names
    assert not [name for name in names if f"`{name}`" not in text]
    unnamed = [value for value in values if f"`{value}`" not in text]
    assert not set(unnamed) - {"float32", "float16"}
