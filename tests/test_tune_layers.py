"""``specplug tune --skip-layers``: what it finds, what it writes, and that nothing else changes."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specplug import Bundle, BundleError, ExportError, SpeculativeDecoder
from specplug.bundle import ChosenLayers
from specplug.cli import skipping as command
from specplug.export import choosing, export_bundle, skipping
from specplug.export.choosing import ChoiceOptions, choose_layers
from specplug.types import ContextLimitError
from tests_support.command import Started, specplug
from tests_support.layers import idle_checkpoint

LAYERS, IDLE = 5, (1, 3)
KEPT = [0, 2, 4]
PROMPTS = ["the quick brown fox", "hello, hello", "1 2 3 4 5 6"]
CHOSEN = ChosenLayers(
    prompts=3,
    prompts_sha256="0" * 64,
    answer_tokens=120,
    seed=0,
    tried=9,
    draft_tokens=2,
    chances=[0.9, 0.8],
    tokens_per_second=120.0,
    plain_tokens_per_second=100.0,
    machine="abacus",
)


@pytest.fixture(scope="module", params=["fp32", "w8a8"])
def idle_bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a model some of whose layers do nothing."""
    folder = tmp_path_factory.mktemp("idle")
    source = idle_checkpoint(folder / "source", LAYERS, IDLE)
    export_bundle(source, folder / "made.bundle", precision=request.param)
    return folder / "made.bundle"


@pytest.fixture
def bundle(idle_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(idle_bundle, tmp_path / "copy.bundle"))


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def drafted(bundle: Path, drafter: str) -> tuple[list[tuple[int, ...]], int, int]:
    """Answers, and how many tokens were drafted and accepted for them."""
    tokens = 0 if drafter == "none" else 3
    with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=tokens) as decoder:
        made = [decoder.generate(prompt, max_tokens=40) for prompt in PROMPTS]
    return (
        [each.token_ids for each in made],
        sum(each.stats.drafted for each in made),
        sum(each.stats.accepted for each in made),
    )


def test_idle_layers_are_found_and_the_draft_is_used_at_once(bundle: Path) -> None:
    before = contents(bundle)
    plain, _, _ = drafted(bundle, "none")
    options = ChoiceOptions(seconds=600, places=40, max_tokens=40)
    choice = choose_layers(Bundle.open(bundle), PROMPTS, options)
    assert list(choice.layers) == KEPT
    assert choice.finished
    assert min(choice.chosen.chances) > 0.9  # drafts round as the target does, but for its order
    assert choice.chosen.answer_tokens == sum(map(len, plain))
    assert contents(bundle) == before
    written = skipping.write_draft(Bundle.open(bundle), choice.layers, choice.chosen)
    opened = Bundle.open(bundle)
    assert opened.manifest == written
    assert opened.manifest.draft is not None
    assert opened.manifest.draft.layers == KEPT
    assert opened.manifest.draft.chosen == choice.chosen
    assert opened.manifest.target == Bundle.open(bundle).manifest.target
    after = contents(bundle)
    (graph,) = set(after) - set(before)
    assert graph.startswith("target/draft-")
    assert {name: after[name] for name in before if name != "specplug.json"} == {
        name: before[name] for name in before if name != "specplug.json"
    }
    texts, tokens, accepted = drafted(bundle, "self")
    assert texts == plain
    assert accepted > 0.9 * (tokens - 3 * len(PROMPTS)) > 0


def test_the_same_seed_finds_the_same(bundle: Path) -> None:
    """With costs that are the same: those of this machine are measured."""
    found = [
        choose_layers(
            Bundle.open(bundle), PROMPTS, ChoiceOptions(seconds=600, places=20, max_tokens=20)
        )
        for _ in range(2)
    ]
    assert found[0].layers == found[1].layers
    assert found[0].chosen.prompts_sha256 == found[1].chosen.prompts_sha256


def test_the_command(bundle: Path, tmp_path: Path) -> None:
    """Prompts from files; the bundle verifies; inspect tells; a second run replaces its own."""
    text, lines = tmp_path / "one.txt", tmp_path / "more.jsonl"
    text.write_text(PROMPTS[0])
    rows = [{"id": str(i), "category": "", "prompt": each} for i, each in enumerate(PROMPTS[1:])]
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ("--skip-layers", "--prompts", text, "--prompts", lines, "--max-tokens", 24)
    before = contents(bundle)
    dry = specplug("tune", bundle, *arguments, "--seconds", 20, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "drafts with    3 of 5 layers: 0,2,4" in dry.stdout
    assert "skips          1,3" in dry.stdout
    assert "the bundle is as it was" in dry.stderr
    assert contents(bundle) == before
    for seed in (0, 7):
        done = specplug("tune", bundle, *arguments, "--seconds", 20, "--seed", seed, "--force")
        assert done.returncode == 0, done.stderr
        assert "--drafter self and auto draft with it" in done.stderr
        assert len([*bundle.rglob("draft-*.onnx")]) == 1
        assert not [*bundle.rglob(".*")]
    shown = specplug("inspect", bundle)
    assert "3 of the target's layers (0,2,4) and its cache" in shown.stdout
    assert "chosen by tune --skip-layers" in shown.stdout
    assert "with seed 7" in shown.stdout
    manifest = json.loads(specplug("inspect", bundle, "--json").stdout)
    assert manifest["draft"]["chosen"]["prompts"] == len(PROMPTS)
    assert {"onnx-ir", "onnxruntime", "specplug"} == set(manifest["draft"]["provenance"]["tools"])
    verified = specplug("verify", bundle, "--sequences", 200)
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_a_draft_that_does_not_pay_is_not_written(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(bundle)
    monkeypatch.setattr(choosing, "WORTH", 1e9)
    options = {"seconds": 2.0, "max_tokens": 8, "seed": 0, "threads": None}
    command.tune_layers(bundle, (), dry_run=False, force=False, **options)
    assert contents(bundle) == before
    command.tune_layers(bundle, (), dry_run=False, force=True, **options)
    assert Bundle.open(bundle).manifest.draft is not None
    told = " ".join(capsys.readouterr().err.split())
    assert "it does not pay on this machine: the bundle is as it was" in told
    assert "judged by built-in prompts" in told


def test_what_a_run_that_ended_early_leaves_is_harmless(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the last file and the manifest; the next write clears it away."""
    before = Bundle.open(bundle).manifest

    def fail(folder: Path, manifest: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(skipping, "replace_manifest", fail)
        with pytest.raises(KeyboardInterrupt):
            skipping.write_draft(Bundle.open(bundle), (0, 1), CHOSEN)
    assert Bundle.open(bundle).manifest == before
    skipping.write_draft(Bundle.open(bundle), (0, 4), CHOSEN)
    assert len([*bundle.rglob("draft-*.onnx")]) == 1


def killed(bundle: Path) -> Iterator[int]:
    """Exit codes of runs that were killed, each a little later."""
    for pause in (0.0, 0.2, 0.8, 2.0):
        arguments = ["--skip-layers", "--max-tokens", "8", "--seconds", "1", "--force"]
        process = Started("tune", bundle, *arguments)
        while process.poll() is None and not [*bundle.rglob(".skipping-*")]:
            time.sleep(0.01)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        yield process.wait()


def test_a_killed_run_leaves_the_bundle_whole(bundle: Path) -> None:
    plain, _, _ = drafted(bundle, "none")
    kills = 0
    for code in killed(bundle):
        kills += code == -signal.SIGKILL
        Bundle.open(bundle)
    assert kills
    assert drafted(bundle, "none")[0] == plain
    skipping.write_draft(Bundle.open(bundle), (0, 2, 4), CHOSEN)
    assert not [*bundle.rglob(".skipping-*")]
    assert drafted(bundle, "self")[0] == plain


def test_another_draft_is_replaced_only_if_asked_for(
    head_bundles: dict[str, Path], tmp_path: Path
) -> None:
    """A head, here: its files go, and the target's hidden states stay."""
    path = Path(shutil.copytree(head_bundles["w8a8-ort"], tmp_path / "copy.bundle"))
    plain, _, _ = drafted(path, "none")
    before = contents(path)
    done = specplug("tune", path, "--skip-layers")
    assert done.returncode == 1
    assert "has a draft already" in done.stderr
    assert "--force puts the new one in its place" in done.stderr
    assert contents(path) == before
    manifest = skipping.write_draft(Bundle.open(path), (0, 2), CHOSEN)
    assert manifest.draft is not None
    assert manifest.draft.hidden is manifest.draft.head is None
    assert manifest.target.hidden is not None
    assert set(contents(path)) == {file.path for file in manifest.all_files()} | {"specplug.json"}
    assert drafted(path, "self")[0] == plain


def test_targets_that_cannot_be_drafted_for(
    foreign_bundles: dict[str, Path], tiny_bundles: dict[str, Path]
) -> None:
    with pytest.raises(ExportError, match=r"dialect concat.*from its source"):
        skipping.check_bundle(Bundle.open(foreign_bundles["optimum"]))
    opened = Bundle.open(tiny_bundles["w8a8"])
    target = opened.manifest.target
    for change, message in (
        ({"engine": "tensorrt"}, "for the engine tensorrt"),
        ({"cache": target.cache.model_copy(update={"layers": 1})}, "one layer"),
    ):
        changed = opened.manifest.model_copy(update={"target": target.model_copy(update=change)})
        with pytest.raises(ExportError, match=message):
            skipping.check_bundle(Bundle(opened.path, changed))


def test_prompts_that_do_not_fit(tiny_bundles: dict[str, Path]) -> None:
    opened = Bundle.open(tiny_bundles["w8a8"])
    long = "a" * opened.manifest.target.max_length
    with pytest.raises(ContextLimitError, match=r"prompt 2 has .* tokens.*shorten it"):
        choose_layers(opened, ["b", long], ChoiceOptions(max_tokens=8))
    with pytest.raises(ValueError, match="no prompts"):
        choose_layers(opened, [], ChoiceOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, "seconds 0: a search needs some"),
        ({"max_tokens": 1}, "max_tokens 1"),
        ({"seed": -1}, "seed -1"),
        ({"places": 0}, "places 0"),
    ],
)
def test_options_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChoiceOptions(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--skip-layers", "--contexts", "16"], "--contexts has no place here: --skip-layers"),
        (["--skip-layers", "--target-engine", "pytorch"], "--target-engine has no place here"),
        (["--force"], "--force has no place here: without --skip-layers"),
        (["--prompts", "x.txt"], "--prompts has no place here: without --skip-layers"),
        (["--skip-layers", "--prompts", "not-there.txt"], "not-there.txt"),
        (["--skip-layers", "--prompts", "empty.txt"], "empty.txt: it is empty"),
        (["--skip-layers", "--prompts", "bytes.txt"], "bytes.txt is not UTF-8"),
        (["--skip-layers", "--prompts", "bad.jsonl"], "bad.jsonl, line 1: need an object"),
    ],
)
def test_bad_arguments(
    tiny_bundles: dict[str, Path],
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\xfd")
    (tmp_path / "bad.jsonl").write_text("{}\n")
    before = contents(tiny_bundles["w8a8"])
    done = specplug("tune", tiny_bundles["w8a8"], *options)
    assert done.returncode == 1
    assert message in " ".join(done.stderr.split())
    assert contents(tiny_bundles["w8a8"]) == before


def test_a_chosen_draft_with_other_layers_is_refused(bundle: Path) -> None:
    skipping.write_draft(Bundle.open(bundle), (0, 4), CHOSEN)
    file = bundle / "specplug.json"
    manifest = json.loads(file.read_text())
    manifest["draft"]["layers"] = [0, 9]
    file.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="not of the target's 5"):
        Bundle.open(bundle)


@pytest.mark.slow
@pytest.mark.weights
def test_smollm2(real_bundle: Path, tmp_path: Path) -> None:
    """A small budget: whatever it finds, text stays and what it measured is what rounds give."""
    path = Path(shutil.copytree(real_bundle, tmp_path / "copy.bundle"))
    options = ChoiceOptions(seconds=30, max_tokens=24)
    choice = choose_layers(Bundle.open(path), PROMPTS, options)
    assert 0 < len(choice.layers) < 30
    assert choice.chosen.chances[0] > 0.3
    skipping.write_draft(Bundle.open(path), choice.layers, choice.chosen)
    plain, _, _ = drafted(path, "none")
    texts, tokens, accepted = drafted(path, "self")
    assert texts == plain
    assert accepted > 0.2 * tokens
    assert np.all(np.diff(choice.layers) > 0)
