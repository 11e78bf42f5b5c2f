"""``specplug bench``: what it reads, what it measures, what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from specplug import EngineOptions, SpeculativeDecoder
from specplug.bench.machine import EnergyMeter
from specplug.bench.subjects import find_subjects, open_subjects
from specplug.bench.texts import SyntheticDrafter, TextOptions, measure_texts
from specplug.bench.workload import BUILT_IN, Item, read_workload
from specplug.bundle import Bundle
from specplug.engines.fake import FakeEngine
from specplug.engines.host import HostScores
from specplug.types import Step
from tests_support.command import specplug
from tests_support.languages import language

RUN = {
    "engine", "dialect", "precision", "drafter", "category", "prompt_id", "repeat", "new_tokens",
    "seconds", "tokens_per_second", "acceptance_length", "same_text",
}  # fmt: skip


@pytest.fixture(scope="module")
def compared(
    tiny_bundles: dict[str, Path], tiny_source: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict, Path, str, str]:
    """A whole comparison: its JSON, its plot, both streams."""
    folder = tmp_path_factory.mktemp("bench")
    workload = folder / "prompts.jsonl"
    lines = [
        {"id": "a", "category": "one", "prompt": "one two three one two"},
        {"question_id": 7, "category": "two", "turns": ["four five four five four", "more"]},
    ]
    workload.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = specplug(
        "bench", tiny_bundles["fp32"], tiny_bundles["standard-fp32"],
        "--engines", "onnxruntime,pytorch,tensorrt", "--precisions", "fp32,w8a8",
        "--widths", "1,4,8", "--batches", "1,2", "--drafters", "none,ngram",
        "--synthetic-acceptance", "0.7", "--workload", workload, "--max-tokens", "24",
        "--repeats", "2", "--source", tiny_source,
        "--json", folder / "out.json", "--plot", folder / "out.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "out.json").read_text())
    return result, folder / "out.png", done.stdout, done.stderr


def test_every_run_is_recorded(compared: tuple[dict, Path, str, str]) -> None:
    runs = compared[0]["runs"]
    subjects = {(run["engine"], run["dialect"], run["precision"]) for run in runs}
    assert subjects == {
        ("onnxruntime", "ort", "fp32"),
        ("onnxruntime", "ort", "w8a8"),  # exported for the run
        ("onnxruntime", "standard", "fp32"),
        ("pytorch", None, "fp32"),
    }
    assert len(runs) == len(subjects) * 3 * 2 * 2  # drafters, prompts, repeats
    for run in runs:
        assert set(run) >= RUN
        assert run["same_text"]
        assert run["new_tokens"] <= 24
        assert run["tokens_per_second"] == pytest.approx(run["new_tokens"] / run["seconds"])
        assert run["acceptance_length"] == 1 or run["drafter"] != "none"
    assert {(run["prompt_id"], run["category"]) for run in runs} == {("a", "one"), ("7", "two")}


def test_the_summary_has_every_figure(compared: tuple[dict, Path, str, str]) -> None:
    summary = compared[0]["summary"]
    shapes = {(row["batch"], row["width"]) for row in summary["calls"]}
    assert shapes == {(batch, width) for batch in (1, 2) for width in (1, 4, 8)}
    assert all(row["milliseconds"]["median"] > 0 for row in summary["calls"])
    for row in summary["engines"]:
        assert row["start_seconds"] > 0
        assert row["memory_bytes"] > 1 << 20
        assert row["prefill_tokens_per_second"]["median"] > 0
    for row in summary["texts"]:
        assert row["same_text"] == row["texts"] == 4
        assert 0 < row["inter_token_seconds"]["median"] <= row["inter_token_seconds"]["p95"]
        if row["drafter"] == "none":
            assert row["over_plain"]["median"] == 1


def test_what_cannot_be_measured_is_named_with_the_remedy(
    compared: tuple[dict, Path, str, str],
) -> None:
    result, _, _, told = compared
    reasons = {each["what"]: each["reason"] for each in result["missing"]}
    assert "specplug export --engine tensorrt" in reasons["tensorrt standard fp32"]
    assert "computes in fp32, fp16, bf16" in reasons["pytorch w8a8"]
    assert "not measured: tensorrt ort fp32" in told


def test_table_and_plot(compared: tuple[dict, Path, str, str]) -> None:
    _, plot, shown, _ = compared
    assert "milliseconds a call" in shown
    assert "onnxruntime standard fp32" in shown
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not list(plot.parent.glob(".*"))


def test_synthetic_acceptance_is_the_acceptance() -> None:
    """Expected tokens of a round are (1 - a^(k+1)) / (1 - a)."""
    engine = FakeEngine(language(0, vocab_size=50), vocab_size=50)
    with SpeculativeDecoder(engine) as plain:
        text = plain.generate([1, 2, 3], max_tokens=3000).token_ids
    for acceptance in (0.0, 0.4, 0.7, 1.0):
        drafter = SyntheticDrafter(acceptance)
        drafter.aim(text, 3, 50)
        engine = FakeEngine(language(0, vocab_size=50), vocab_size=50)
        with SpeculativeDecoder(engine, drafter=drafter, draft_tokens=4) as decoder:
            result = decoder.generate([1, 2, 3], max_tokens=3000)
        assert result.token_ids == text
        expected = sum(acceptance**i for i in range(5))
        assert result.stats.acceptance_length == pytest.approx(expected, rel=0.05)


class Unlike:
    """An engine whose rows depend on the width of the call."""

    def __init__(self) -> None:
        self._engine = FakeEngine(language(0, vocab_size=260), vocab_size=260)
        self.spec = self._engine.spec

    def forward(self, step: Step) -> object:
        scores = self._engine.forward(step)
        unlike = 2 < step.tokens.shape[1] < 30
        return HostScores(-scores.logits()) if unlike else scores

    def close(self) -> None:
        pass


def test_a_text_that_differs_is_found_out(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    (subject,) = find_subjects([bundle], [], [], EngineOptions())
    items = [Item("a", "", "abcabcabcabcabcabcabcabcabcabcabc")]
    options = TextOptions(max_tokens=32, repeats=1, draft_tokens=8, synthetic_acceptance=1.0)
    runs = measure_texts({subject: Unlike()}, items, options, lambda: None)  # type: ignore[dict-item]
    assert [run.same_text for run in runs if run.drafter == "none"] == [True]
    assert [run.same_text for run in runs if run.drafter == "synthetic"] == [False]


def test_an_engine_of_one_row_is_measured_with_one(
    foreign_bundles: dict[str, Path],
) -> None:
    bundle = Bundle.open(foreign_bundles["optimum"])
    subjects = find_subjects([bundle], [], [], EngineOptions(max_batch=4))
    opened, missing = open_subjects(subjects)
    assert not missing
    assert [engine.spec.max_batch for engine in opened.values()] == [1]


def test_limit_takes_all_categories_in_turn() -> None:
    items = read_workload(BUILT_IN, limit=3)
    assert len({item.category for item in items}) == 3
    assert len(read_workload(BUILT_IN)) == 6


@pytest.mark.parametrize("line", ["no json", "{}", '{"id": 1, "prompt": ""}', '{"turns": []}', "3"])
def test_a_line_that_is_no_prompt(line: str, tmp_path: Path) -> None:
    path = tmp_path / "w.jsonl"
    path.write_text('{"id": "a", "prompt": "hello"}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2: need an object with prompt"):
        read_workload(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engines", "cuda"], "--engines cuda: have onnxruntime, pytorch, tensorrt"),
        (["--drafters", "magic"], "--drafters magic: have none, ngram, suffix"),
        (["--widths", "0,4"], "--widths 0,4: need numbers from 1 to 512"),
        (["--batches", "two"], "--batches two: need numbers"),
        (["--synthetic-acceptance", "1.5"], "synthetic acceptance 1.5: need 0 to 1"),
        (["--plot", "plot.doc"], "--plot plot.doc: the name must end in ."),
        (["--json", "nowhere/out.json"], "nowhere/out.json: its folder does not exist"),
        (["--workload", "absent.jsonl"], "No such file or directory: absent.jsonl"),
        (["--precisions", "fp99"], "fp99"),
        (["--temperature", "-1"], "temperature -1"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(
    options: list[str], message: str, tiny_bundle: Path
) -> None:
    done = specplug("bench", tiny_bundle, *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_energy_counters_may_begin_anew(tmp_path: Path) -> None:
    for number, most in ((0, 999_999), (1, 999_999)):
        folder = tmp_path / f"intel-rapl:{number}"
        folder.mkdir()
        (folder / "energy_uj").write_text("900000\n")
        (folder / "max_energy_range_uj").write_text(f"{most}\n")
    meter = EnergyMeter(tmp_path)
    before = meter.read()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("950000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("100000\n")
    assert meter.joules(before) == pytest.approx(0.05 + 0.2)
    assert EnergyMeter(tmp_path / "none").joules([]) is None


def test_free_drafters_beside_a_bundles_draft(tiny_bundle: Path, tmp_path: Path) -> None:
    """Each gets what it uses of the bundle, and all texts are plain decoding's."""
    report = tmp_path / "report.json"
    names = "none,ngram,suffix,recycle,draft,auto"
    done = specplug(
        "bench", tiny_bundle, "--drafters", names, "--limit", "1", "--max-tokens", "4",
        "--repeats", "1", "--widths", "2", "--json", report,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads(report.read_text())["summary"]["texts"]
    assert len(rows) == len(names.split(","))
    assert all(row["same_text"] == row["texts"] for row in rows)
