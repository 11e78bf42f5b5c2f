"""``specplug verify``: what is right passes, and what was tampered with is caught."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import load_model, save_model
from tokenizers import Tokenizer

from specplug import SamplingParams, Step, verification
from specplug.bundle import MANIFEST, Bundle
from specplug.engines.fake import FakeEngine
from specplug.engines.host import HostScores
from specplug.engines.ort import OrtEngine
from specplug.export.tokenizer_check import compare_tokenizers
from specplug.law import check_law
from specplug.sampler import Sampler
from specplug.verification import Check, VerifyOptions
from tests_support.command import specplug
from tests_support.languages import language
from tests_support.tiny import write_checkpoint

SEQUENCES = 300
VOCAB = 6


def verify(
    bundle: Path, source: Path | None = None, sampling: SamplingParams = verification.SAMPLING
) -> dict[str, Check]:
    options = VerifyOptions(sampling=sampling, source=source, sequences=SEQUENCES)
    done: dict[str, float] = {}
    checks = list(verification.verify(bundle, options, done.__setitem__))
    assert all(0 <= share <= 1 for share in done.values())
    return {check.name: check for check in checks}


def fake(seed: int) -> FakeEngine:
    return FakeEngine(language(seed, vocab_size=VOCAB), vocab_size=VOCAB)


def outcome(checks: dict[str, Check]) -> dict[str, bool | None]:
    return {name: check.passed for name, check in checks.items()}


@pytest.fixture
def copied(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copied"))


def rewrite(bundle: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest, and put its hashes right."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    change(manifest)
    parts = [part["files"] for part in (manifest["target"], manifest["draft"])]
    for files in (*parts, [manifest["tokenizer"]["file"]]):
        for file in files:
            content = (bundle / file["path"]).read_bytes()
            file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def perturb(bundle: Path) -> None:
    """Change one weight of the target a little."""
    path = bundle / "target" / "model.onnx"
    model = load_model(path, load_external_data=False)
    weights = bundle / "target" / "model.onnx.data"
    whole = bytearray(weights.read_bytes())
    one = max(
        (t for t in model.graph.initializer if len(t.dims) == 2 and t.data_type == 1),
        key=lambda t: t.dims[0] * t.dims[1],
    )
    places = {entry.key: entry.value for entry in one.external_data}
    start = int(places.get("offset", 0))
    value = np.frombuffer(whole[start : start + 4], dtype=np.float32) + np.float32(0.5)
    whole[start : start + 4] = value.tobytes()
    weights.write_bytes(whole)
    save_model(model, path)


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "int4"])
def test_a_good_bundle_passes(
    tiny_bundles: dict[str, Path], tiny_source: Path, precision: str
) -> None:
    checks = verify(tiny_bundles[precision], tiny_source)
    assert set(outcome(checks).values()) == {True}, checks
    assert list(checks) == [
        "files",
        "source",
        "tokenizer",
        "width",
        "batch",
        "greedy",
        "coupled",
        "distribution",
    ]
    drafters = checks["greedy"].details["drafters"]
    drafts = ["draft"] if precision == "fp32" else []
    assert drafters == ["ngram", *drafts, "auto"]
    assert "every byte is the same" in checks["source"].summary


@pytest.mark.parametrize(("name", "batch"), [("optimum", None), ("genai-fp32", True)])
def test_a_graph_taken_over_passes(
    foreign_bundles: dict[str, Path], name: str, batch: bool | None
) -> None:
    source = Path(__file__).parent / "data" / name
    found = outcome(verify(foreign_bundles[name], source))
    assert found.pop("batch") is batch  # appending graphs take one row
    assert set(found.values()) == {True}


@pytest.mark.parametrize(("precision", "passed"), [("fp32", True), ("w8a8", False)])
def test_rows_that_depend_on_the_batch_are_caught(
    tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch, precision: str, passed: bool
) -> None:
    """The order of sums is no fault, unless rounding amplifies it."""
    right = OrtEngine.forward

    def other_in_a_batch(self: OrtEngine, step: Step) -> HostScores:
        scores = right(self, step)
        return HostScores(scores.logits() + np.float32(1e-5 * (len(step.tokens) > 2)))

    monkeypatch.setattr(OrtEngine, "forward", other_in_a_batch)
    check = verify(tiny_bundles[precision])["batch"]
    assert check.passed is passed, check
    assert check.details["difference"] == pytest.approx(1e-5, rel=0.1)


def test_a_lower_width_is_caught(copied: Path) -> None:
    rewrite(copied, lambda manifest: manifest["target"].update(min_width=1))
    checks = verify(copied)
    assert checks["width"].passed is False
    assert checks["width"].details["declared"] == 1
    assert checks["width"].details["measured"] == 2
    assert checks["files"].passed


def test_a_changed_weight_is_caught(copied: Path, tiny_source: Path) -> None:
    perturb(copied)
    checks = verify(copied, tiny_source)
    assert outcome(checks) == {"files": False}
    assert "model.onnx" in checks["files"].summary

    rewrite(copied, lambda manifest: None)
    checks = verify(copied, tiny_source)
    assert checks["source"].passed is False
    assert "model.onnx.data is not what the source gives" in checks["source"].summary
    # Speculation over the changed model is as exact as over any other.
    assert checks["greedy"].passed
    assert checks["coupled"].passed


def edit(bundle: Path, change: Callable[[dict], None]) -> None:
    path = bundle / "tokenizer.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def with_digits(content: dict) -> None:
    """SmolLM2's rule, which GPT-2's is not."""
    rules = [{"type": "Digits", "individual_digits": True}, content["pre_tokenizer"]]
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": rules}


def with_merge(content: dict) -> None:
    """One more token, in the place of a byte that no text of UTF-8 has."""
    content["model"]["vocab"]["12"] = content["model"]["vocab"].pop("\u00ff")
    content["model"]["merges"].append(["1", "2"])


def tokenizer_check(bundle: Path, source: Path) -> Check:
    return Check("tokenizer", *compare_tokenizers(Bundle.open(bundle), source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(pre_tokenizer=c["pre_tokenizer"] | {"add_prefix_space": True}), "here"),
        (lambda c: c.update(normalizer={"type": "Lowercase"}), "'Hello world' is 11 tokens"),
        (lambda c: c.update(added_tokens=c["added_tokens"][:-1]), "tokens of other names"),
        (lambda c: c.update(decoder={"type": "Fuse"}), r"tokens .* are .* by transformers'"),
        (with_merge, "tokens of other names"),
    ],
)
def test_a_changed_tokenizer_is_caught(
    copied: Path, tiny_source: Path, change: Callable[[dict], None], message: str
) -> None:
    edit(copied, change)
    rewrite(copied, lambda manifest: None)
    check = tokenizer_check(copied, tiny_source)
    assert check.passed is False
    assert re.search(message, check.summary), check.summary
    assert check.summary.endswith(": export the model again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda part: part.update(stop_token_ids=[]), "it stops at 0 tokens"),
        (lambda part: part.update(stop_token_ids=[1, 256]), "it stops at 2 tokens 1, 256, the sou"),
        (lambda part: part.update(chat_template="{{ messages }}"), "chat template is not"),
        (lambda part: part.update(chat_template=None), "chat template is not"),
    ],
)
def test_other_ends_and_templates_are_caught(
    copied: Path, tiny_source: Path, change: Callable[[dict], None], message: str
) -> None:
    rewrite(copied, lambda manifest: change(manifest["tokenizer"]))
    check = tokenizer_check(copied, tiny_source)
    assert check.passed is False
    assert message in check.summary


def test_another_rule_for_digits_is_caught(copied: Path, tmp_path: Path, tiny_source: Path) -> None:
    """As bundles have it that were made while SmolLM2's rule was read as GPT-2's."""
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    for folder in (source, copied):
        edit(folder, with_merge)
    edit(source, with_digits)
    rewrite(copied, lambda manifest: None)
    check = tokenizer_check(copied, source)
    assert check.passed is False
    assert "12" in check.summary
    edit(copied, with_digits)
    rewrite(copied, lambda manifest: None)
    assert tokenizer_check(copied, source).passed


def test_limits_of_an_older_bundle_do_no_harm(copied: Path, tiny_source: Path) -> None:
    limits = Tokenizer.from_file(str(copied / "tokenizer.json"))
    limits.enable_truncation(32)
    limits.save(str(copied / "tokenizer.json"))
    rewrite(copied, lambda manifest: None)
    assert tokenizer_check(copied, tiny_source).passed


def test_a_class_that_rebuilds_the_tokenizer_is_told(
    copied: Path, tmp_path: Path, tiny_source: Path
) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    for folder in (source, copied):
        edit(folder, with_merge)
        edit(folder, with_digits)
    rewrite(copied, lambda manifest: None)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings["tokenizer_class"] = "GPT2Tokenizer"
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    check = tokenizer_check(copied, source)
    assert check.passed, check
    assert "transformers' GPT2Tokenizer does not read tokenizer.json as it is" in check.summary


def test_a_tokenizer_on_one_side_only(copied: Path, tmp_path: Path, tiny_source: Path) -> None:
    source = Path(shutil.copytree(tiny_source, tmp_path / "source"))
    for file in source.glob("tokenizer*"):
        file.unlink()
    check = tokenizer_check(copied, source)
    assert check.passed is False
    assert "the bundle has a tokenizer, and the source has none" in check.summary


def test_other_tools_are_judged_by_their_logits(copied: Path, tiny_source: Path) -> None:
    def older(manifest: dict) -> None:
        manifest["target"]["provenance"]["tools"]["onnx"] = "1.0"

    (copied / "target" / "model.onnx").open("ab").close()
    rewrite(copied, older)
    assert verify(copied, tiny_source)["source"].passed
    perturb(copied)
    rewrite(copied, older)
    checks = verify(copied, tiny_source)
    assert checks["source"].passed is False
    assert "by other versions of the tools" in checks["source"].summary


def test_another_source_is_named(tiny_bundle: Path, tmp_path: Path) -> None:
    other = write_checkpoint(tmp_path / "other", seed=5)
    check = verify(tiny_bundle, other)["source"]
    assert check.passed is False
    assert "is not what the bundle was exported from" in check.summary


def test_nothing_is_drawn_at_temperature_0(tiny_bundle: Path) -> None:
    checks = verify(tiny_bundle, sampling=SamplingParams())
    assert checks["coupled"].passed is None
    assert checks["distribution"].passed is None
    assert checks["greedy"].passed


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("filters", [{}, {"top_k": 5, "min_p": 0.02}])
def test_the_law_of_a_right_loop_passes(acceptance: str, filters: dict) -> None:
    params = SamplingParams(temperature=0.9, seed=3, acceptance=acceptance, **filters)
    law = check_law(fake(1), fake(2), [1, 2, 3], params, sequences=2000)
    assert law.passed, law
    assert law.detectable < 0.15


def test_the_law_of_a_wrong_loop_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.9, acceptance="rejection")
    assert check_law(fake(1), fake(2), [1, 2, 3], params, sequences=2000).passed
    monkeypatch.setattr("specplug.acceptance.residual", lambda target, draft, scale=1.0: target)
    assert not check_law(fake(1), fake(2), [1, 2, 3], params, sequences=2000).passed


def test_impossible_tokens_are_found_however_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    params = SamplingParams(temperature=0.9, top_k=3)
    right, random = Sampler._choose, np.random.default_rng(0)

    def now_and_then(self: Sampler, logits: np.ndarray, history: np.ndarray) -> int:
        return int(logits.argmin()) if random.random() < 0.01 else right(self, logits, history)

    assert check_law(fake(1), None, [1, 2, 3], params, sequences=500).impossible is None
    monkeypatch.setattr(Sampler, "_choose", now_and_then)
    assert check_law(fake(1), None, [1, 2, 3], params, sequences=500).impossible


def test_command(tiny_bundle: Path, copied: Path, tiny_source: Path) -> None:
    few = ("--sequences", SEQUENCES)
    shown = specplug("verify", tiny_bundle, *few)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["pass", "skip", "skip"] + ["pass"] * 5
    assert "equal plain decoding's, token for token" in shown.stdout

    rewrite(copied, lambda manifest: manifest["target"].update(min_width=1))
    failed = specplug("verify", copied, *few, "--source", tiny_source, "--json")
    assert failed.returncode == 1
    report = json.loads(failed.stdout)
    assert report["passed"] is False
    passed = {check["name"]: check["passed"] for check in report["checks"]}
    assert passed["width"] is False
    assert passed["source"] is True


@pytest.mark.parametrize(
    ("arguments", "message", "code"),
    [
        (["--sequences", "10"], "sequences 10: a test of the law needs at least 100", 1),
        (["--temperature", "-1"], "temperature -1.0: it must be >= 0", 1),
        (["--top-p", "0"], "top_p 0.0: it must be in (0, 1]", 1),
        (["--acceptance", "hope"], "hope", 2),
        (["--source", "/nowhere"], "/nowhere", 1),
    ],
)
def test_wrong_arguments(tiny_bundle: Path, arguments: list[str], message: str, code: int) -> None:
    result = specplug("verify", tiny_bundle, *arguments)
    assert result.returncode == code
    assert message in result.stderr


def test_no_bundle(tmp_path: Path) -> None:
    result = specplug("verify", tmp_path / "none")
    assert result.returncode == 1
    assert "FAIL" in result.stdout
    assert "none" in result.stdout
