"""``specplug tune``: what it writes, who reads it, what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from specplug import Bundle, BundleError, EngineError, SpeculativeDecoder, tuning
from specplug.controller import CallCosts, MeasuredLength
from specplug.costs import WIDTHS, measure_costs
from specplug.engines.fake import FakeEngine
from tests_support.command import specplug
from tests_support.languages import language


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be written to."""
    return Path(shutil.copytree(tiny_bundle, tmp_path / "copy.bundle"))


def test_tuned_costs_are_used_by_context(bundle: Path) -> None:
    done = specplug("tune", bundle, "--contexts", "16,300", "--seconds", "0.3")
    assert done.returncode == 0, done.stderr
    assert "milliseconds a call of onnxruntime in fp32" in done.stdout
    written = json.loads((bundle / "tuning.json").read_text())
    (tuned,) = written["tuned"]
    assert set(tuned["contexts"]) == {"16", "300"}
    for costs in tuned["contexts"].values():
        assert {"1", "16"} <= set(costs)
        assert all(0 < seconds < 1 for seconds in costs.values())
    # Told apart by a cost that no machine has.
    tuned["contexts"]["300"] = {"1": 50.0, "16": 60.0}
    (bundle / "tuning.json").write_text(json.dumps(written))
    with SpeculativeDecoder.from_bundle(bundle) as decoder:
        decoder.generate([1, 2, 3], max_tokens=4)
        assert isinstance(decoder.length, MeasuredLength)
        assert decoder.length.costs[1] < 1
        decoder.generate([5] * 290, max_tokens=1)
        assert decoder.length.costs[1] > 10
    assert Bundle.open(bundle)  # the manifest says nothing of the file


def test_other_machines_threads_and_graphs_do_not_count(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    engine = FakeEngine(language(0, vocab_size=260), vocab_size=260, max_length=400)
    made = tuning.tune(opened, engine, 2, contexts=[20], seconds=0.05)
    assert tuning.read_costs(opened, engine, 2) is not None
    assert tuning.read_costs(opened, engine, 1) is None
    file = bundle / "tuning.json"
    for field, other in (("machine", "abacus"), ("precision", "w8a8"), ("engine", "pytorch")):
        changed = made.model_copy(update={field: other})
        file.write_text(tuning.Tuning(tuned=[changed]).model_dump_json())
        assert tuning.read_costs(opened, engine, 2) is None
    tuning.tune(opened, engine, 2, contexts=[30], seconds=0.05)
    assert len(json.loads(file.read_text())["tuned"]) == 2  # what others measured stays


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "damaged"),
        ('{"tuned": [{"machine": 3}]}', r"damaged at tuned\.0"),
        ('{"schema_version": 2, "tuned": []}', "damaged at schema_version"),
        (" " * (1 << 21), "larger than"),
    ],
)
def test_a_damaged_file_is_named_with_the_remedy(bundle: Path, text: str, message: str) -> None:
    (bundle / "tuning.json").write_text(text)
    with pytest.raises(BundleError, match=f"tuning.json is {message}.*run specplug tune"):
        SpeculativeDecoder.from_bundle(bundle)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--contexts", "none"], "--contexts none: need numbers"),
        (["--contexts", "1000000"], "contexts [1000000]: need some from 1 to"),
        (["--target-engine", "abacus"], "no engine named 'abacus'"),
    ],
)
def test_bad_arguments(bundle: Path, options: list[str], message: str) -> None:
    done = specplug("tune", bundle, *options)
    assert done.returncode == 1
    assert message in done.stderr
    assert not (bundle / "tuning.json").exists()


def test_costs_are_measured_within_the_context_and_the_time() -> None:
    short = FakeEngine(language(0, vocab_size=9), vocab_size=9, max_length=20, min_width=2)
    found = measure_costs(short, seconds=0.2)
    assert 1 in found
    assert max(found) <= 10
    assert CallCosts(found)[16] > 0
    wide = FakeEngine(language(0, vocab_size=9), vocab_size=9)
    assert set(measure_costs(wide, seconds=0.5)) == set(WIDTHS)
    wide.close()
    with pytest.raises(EngineError, match="closed"):
        measure_costs(wide)
