"""Bundles whose draft has a tokenizer of its own: made, checked, opened and run."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Bundle, BundleError, ExportError, SamplingParams, SpeculativeDecoder
from specplug.bundle import MANIFEST
from specplug.bundle_files import describe_file
from specplug.drafters import IntersectionSource, ReencodingSource
from specplug.export import export_bundle, plan_export
from specplug.opening import open_translation
from specplug.translation import Reader
from specplug.verification import VerifyOptions, verify
from test_tampering import tampered
from tests_support.command import specplug
from tests_support.made_tokenizers import byte_level, words
from tests_support.tiny import SPECIAL_TOKENS, byte_tokenizer, write_checkpoint

PROMPT = "one two three one two"
SAMPLED = SamplingParams(temperature=0.9, top_p=0.95, seed=5)
TOKENIZER = "draft/tokenizer.json"
KINDS = {
    "reencoding": byte_level(60, tuple(SPECIAL_TOKENS)),
    "intersection": byte_tokenizer(("<|extra|>",)),
}


@pytest.fixture(scope="module")
def sources(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Drafts by how they are translated for the tiny checkpoint, whose tokens are bytes."""
    folder = tmp_path_factory.mktemp("others")
    return {
        kind: write_checkpoint(folder / kind, seed=3, hidden_size=32, tokenizer=tokenizer)
        for kind, tokenizer in KINDS.items()
    }


@pytest.fixture(scope="module")
def bundles(
    tiny_source: Path, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("universal")
    for kind, draft in sources.items():
        notes: list[str] = []
        export_bundle(tiny_source, folder / kind, precision="fp32", draft=draft, note=notes.append)
        (told,) = notes
        assert told.startswith("the draft's tokenizer is another than the target's: ")
        assert kind.replace("reencoding", "re-encoding") in told
    return {kind: folder / kind for kind in sources}


def test_what_is_written(bundles: dict[str, Path]) -> None:
    for kind, path in bundles.items():
        bundle = Bundle.open(path)
        own = bundle.manifest.draft.own_tokenizer if bundle.manifest.draft else None
        assert own is not None
        assert own.translation == kind
        assert own.tokenizer.chat_template is None
        assert own.shared_tokens == 260
        assert (own.agreement == 1) == (kind == "intersection")
        tokenizer = bundle.draft_tokenizer()
        assert tokenizer is not None
        assert tokenizer.backend.get_vocab() == KINDS[kind].get_vocab()
        shown = " ".join(specplug("inspect", path).stdout.split())
        assert "the draft's tokenizer is its own: 260 tokens are the target's" in shown
        assert f"drafts by {kind}" in shown
    assert Bundle.open(bundles["reencoding"]).tokenizer() is not None


def test_a_plan_names_its_tokenizer(
    tiny_source: Path, sources: dict[str, Path], bundles: dict[str, Path], tmp_path: Path
) -> None:
    plan = plan_export(tiny_source, tmp_path / "b", draft=sources["reencoding"], precision="fp32")
    assert plan.files[TOKENIZER] == (bundles["reencoding"] / TOKENIZER).stat().st_size


@pytest.mark.parametrize("kind", KINDS)
def test_every_combination_of_engines_gives_the_same_text(
    kind: str, bundles: dict[str, Path], sources: dict[str, Path], tiny_source: Path
) -> None:
    def answers(**options: Any) -> list[tuple[int, ...]]:
        found = []
        with SpeculativeDecoder.from_bundle(
            bundles[kind], sources=(tiny_source, sources[kind]), **options
        ) as decoder:
            for sampling in (SamplingParams(), SAMPLED):
                result = decoder.generate(PROMPT, max_tokens=30, sampling=sampling)
                found.append(result.token_ids)
                assert result.stats.drafted or "draft_tokens" not in options
        return found

    plain = answers(drafter="none")
    for target, draft in product(("onnxruntime", "pytorch"), repeat=2):
        options = {"target_engine": target, "draft_engine": draft}
        assert answers(drafter="draft", draft_tokens=4, **options) == plain, options
    for name in ("universal", "auto"):
        assert answers(drafter=name, draft_tokens=4) == plain
    assert answers(drafter="auto") == plain


def test_which_source_drafts(bundles: dict[str, Path]) -> None:
    for kind, wanted in (("reencoding", ReencodingSource), ("intersection", IntersectionSource)):
        for name in ("draft", "universal", "auto"):
            with SpeculativeDecoder.from_bundle(bundles[kind], drafter=name) as decoder:
                last = decoder.drafter.sources[-1]  # type: ignore[attr-defined]
                assert type(last) is wanted


@pytest.mark.slow
def test_verify(bundles: dict[str, Path], tiny_source: Path) -> None:
    options = VerifyOptions(sequences=300, source=tiny_source)
    checks = list(verify(bundles["reencoding"], options, lambda name, share: None))
    assert all(check.passed for check in checks if check.name != "source"), checks


# --- what is not as it should be --------------------------------------------------------------


def test_a_bundle_without_one_says_so(tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no draft with a tokenizer of its own"):
        SpeculativeDecoder.from_bundle(tiny_bundle, drafter="universal")


def test_tokenizers_that_are_not_translated(tiny_source: Path, tmp_path: Path) -> None:
    """Refused before anything is computed."""
    other = write_checkpoint(tmp_path / "words", tokenizer=words())
    stages: list[str] = []
    for source, draft in ((tiny_source, other), (other, tiny_source)):
        with pytest.raises(ExportError, match=r"differs .* cannot be translated: its decoder is"):
            export_bundle(source, tmp_path / "b", draft=draft, report=stages.append)
    assert all(stage.startswith("reading") for stage in stages)
    for file in other.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(ExportError, match=r"draft vocabulary 4 != target vocabulary 260, and with"):
        export_bundle(tiny_source, tmp_path / "b", draft=other)
    assert not (tmp_path / "b").exists()


def copied(bundle: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle, to))


def change(bundle: Path, *path: str, value: Any) -> None:
    """Give the manifest another value at a path."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    *parents, last = path
    at = manifest
    for key in parents:
        at = at[key]
    at[last] = value
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def put(bundle: Path, tokenizer: str) -> None:
    """Give the draft another tokenizer, its hash put right."""
    (bundle / TOKENIZER).write_text(tokenizer)
    file = describe_file(bundle, TOKENIZER).model_dump()
    change(bundle, "draft", "own_tokenizer", "tokenizer", "file", value=file)


def test_a_changed_tokenizer_is_found(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = copied(bundles["reencoding"], tmp_path / "b")
    path = bundle / TOKENIZER
    content = path.read_bytes()
    path.write_bytes(content.replace(b"<|end|>", b"<|END|>"))
    with pytest.raises(BundleError, match=rf"{TOKENIZER} was changed: its SHA-256 is"):
        Bundle.open(bundle)
    path.unlink()
    with pytest.raises(BundleError, match=rf"{TOKENIZER} is missing"):
        Bundle.open(bundle)


def test_manifests_that_contradict_themselves(bundles: dict[str, Path], tmp_path: Path) -> None:
    bundle = bundles["reencoding"]
    own = json.loads((bundle / MANIFEST).read_text())["draft"]["own_tokenizer"]
    cases = (
        (("target", "own_tokenizer"), own, "the target's tokenizer is the bundle's"),
        (("tokenizer",), None, "the draft has a tokenizer and the target none"),
        (("draft", "layers"), [0, 1], "a part of the target has no tokenizer of its own"),
        (("draft", "own_tokenizer", "translation"), "guess", "own_tokenizer.translation"),
        (("draft", "own_tokenizer", "agreement"), 1.5, "own_tokenizer.agreement"),
        (("draft", "own_tokenizer", "tokenizer", "file", "path"), "../x", "not a relative path"),
    )
    for number, (path, value, message) in enumerate(cases):
        made = copied(bundle, tmp_path / str(number))
        change(made, *path, value=value)
        with pytest.raises(BundleError, match=message):
            Bundle.open(made)


@pytest.mark.parametrize("content", ["{}", "words"])
def test_a_tokenizer_of_another_kind(
    content: str, bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Its hash put right: a clear error where the draft is asked for, none without."""
    bundle = copied(bundles["reencoding"], tmp_path / "b")
    put(bundle, words().to_str() if content == "words" else content)
    message = "the draft's tokenizer cannot be translated" if content == "words" else "is not a tok"
    with pytest.raises(BundleError, match=message):
        SpeculativeDecoder.from_bundle(bundle, drafter="draft")
    with SpeculativeDecoder.from_bundle(bundle, drafter="ngram") as decoder:
        assert decoder.generate(PROMPT, max_tokens=5).tokens


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_description_of_a_tokenizer(
    data: st.DataObject, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Opens, or gives a clear error."""
    bundle = copied(bundles["intersection"], tmp_path_factory.mktemp("tampered") / "b")
    own = json.loads((bundle / MANIFEST).read_text())["draft"]["own_tokenizer"]
    change(bundle, "draft", "own_tokenizer", value=json.loads(tampered(data, own)))
    with suppress(BundleError):
        opened = Bundle.open(bundle)
        opened.draft_tokenizer()
        assert opened.manifest.draft is not None
        if opened.manifest.draft.own_tokenizer is not None:
            assert len(open_translation(opened).shared[0]) == 260
    shutil.rmtree(bundle)


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_any_tokenizer(
    data: st.DataObject, bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever it makes of text, its hash put right: it is translated, or a clear error."""
    bundle = copied(bundles["intersection"], tmp_path_factory.mktemp("tampered") / "b")
    tree = json.loads((bundle / TOKENIZER).read_text())
    tree["model"]["vocab"] = dict(list(tree["model"]["vocab"].items())[:90])
    put(bundle, tampered(data, tree))
    with suppress(BundleError):
        translation = open_translation(Bundle.open(bundle))
        reader = Reader(translation)
        reader.read(list(b"some words<|end|>"))
        reader.open(b" and more")
        assert len(translation.shared[0]) <= 260
        for token in range(100):
            translation.for_target(token)
    shutil.rmtree(bundle)


def test_a_tokenizer_with_other_ids_costs_time_alone(
    bundles: dict[str, Path], tmp_path: Path
) -> None:
    """Ids beyond the draft's table are never fed to it, and the text is what it was."""
    bundle = copied(bundles["reencoding"], tmp_path / "b")
    put(bundle, byte_level(400, tuple(SPECIAL_TOKENS)).to_str())
    texts = []
    for options in ({"drafter": "none"}, {"drafter": "draft", "draft_tokens": 4}):
        with SpeculativeDecoder.from_bundle(bundle, **options) as decoder:
            texts.append(decoder.generate(PROMPT, max_tokens=40).token_ids)
    assert texts[0] == texts[1]
