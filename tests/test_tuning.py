"""``specplug tune``: what it writes, who reads it, what it refuses."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from specplug import BatchDecoder, Bundle, EngineError, SpeculativeDecoder, tuning
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


RECORD: dict[str, Any] = {
    "machine": "abacus", "engine": "fake", "device": "cpu", "threads": 2, "precision": "fp32",
    "graph_sha256": "0" * 64, "contexts": {"64": {"1": 0.5}},
}  # fmt: skip


def damaged() -> dict[str, bytes]:
    """Contents of the file that are not costs, by what is wrong with them."""
    seconds = {
        "NaN": math.nan, "infinite": math.inf, "negative": -1.0, "zero": 0, "huge": 1e300,
        "text": "fast", "null": None, "list": [1],
    }  # fmt: skip
    contexts: dict[str, Any] = {
        "no widths": {"64": {}}, "width 0": {"64": {"0": 1.0}}, "context -1": {"-1": {"1": 1.0}},
        "context of text": {"long": {"1": 1.0}}, "contexts in a list": [64],
        **{f"seconds {name}": {"64": {"1": value}} for name, value in seconds.items()},
    }  # fmt: skip
    made = {
        name: json.dumps({"tuned": [RECORD | {"contexts": value}]}).encode()
        for name, value in contexts.items()
    }
    made |= {
        f"without {name}": json.dumps(
            {"tuned": [{key: value for key, value in RECORD.items() if key != name}]}
        ).encode()
        for name in RECORD
    }
    return made | {
        "empty": b"",
        "binary": bytes(range(256)),
        "no JSON": b"not json",
        "cut short": b'{"tuned": [',
        "a list": b"[]",
        "nested": b"[" * 100_000,
        "another version": b'{"schema_version": 2, "tuned": []}',
        "unknown field": b'{"tuned": [], "more": 1}',
        "too large": b" " * (1 << 21),
    }


@pytest.fixture
def fake() -> FakeEngine:
    return FakeEngine(language(0, vocab_size=260), vocab_size=260, max_length=400)


@pytest.mark.parametrize("content", damaged().values(), ids=damaged().keys())
def test_a_damaged_file_is_named_once_and_written_anew(content, bundle, fake, caplog) -> None:
    file = bundle / "tuning.json"
    file.write_bytes(content)
    opened = Bundle.open(bundle)
    assert tuning.read_costs(opened, fake, 2) is None
    (warning,) = caplog.messages
    assert warning.startswith(f"{file} is not used (")
    assert warning.endswith("costs are measured anew; run specplug tune to write it again")
    tuning.tune(opened, fake, 2, contexts=[20], seconds=0.01)
    caplog.clear()
    assert tuning.read_costs(opened, fake, 2) is not None
    assert not caplog.messages


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop"])
def test_what_is_no_file_is_not_read(kind, bundle, fake, caplog) -> None:
    file = bundle / "tuning.json"
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file.name)
    assert tuning.read_costs(Bundle.open(bundle), fake, 2) is None
    (warning,) = caplog.messages
    assert f"{file} is not used (" in warning


def test_a_damaged_file_does_not_stop_an_answer(bundle: Path) -> None:
    (bundle / "tuning.json").write_bytes(b"")
    with SpeculativeDecoder.from_bundle(bundle, drafter="ngram") as decoder:
        assert decoder.generate([1, 2, 3, 1, 2, 3], max_tokens=4).tokens
    with BatchDecoder.from_bundle(bundle, drafter="ngram") as batch:
        answer = batch.submit([1, 2, 3, 1, 2, 3], max_tokens=4)
        while answer.finish_reason is None:
            batch.step()


def test_commands_go_on_with_a_damaged_file(bundle: Path) -> None:
    (bundle / "tuning.json").write_bytes(b"\0\xff")
    done = specplug("generate", bundle, "one two", "--max-tokens", "2")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("tuning.json is not used (damaged at ") == 1
    done = specplug("tune", bundle, "--contexts", "16", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    done = specplug("generate", bundle, "one two", "--max-tokens", "2")
    assert "tuning.json" not in done.stderr


def test_a_killed_tune_leaves_the_old_file(bundle: Path) -> None:
    (bundle / "tuning.json").write_text('{"tuned": []}')
    script = """
import os, signal, sys
from pathlib import Path
from specplug import Bundle, tuning
from specplug.engines.fake import FakeEngine
from tests_support.languages import language

Path.write_text = lambda path, text, **how: (
    path.write_bytes(text.encode()[:9]), os.kill(os.getpid(), signal.SIGKILL)
)
engine = FakeEngine(language(0, vocab_size=260), vocab_size=260, max_length=400)
tuning.tune(Bundle.open(sys.argv[1]), engine, 2, contexts=[20], seconds=0.01)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script, bundle], env=environment)
    assert done.returncode == -signal.SIGKILL
    assert (bundle / "tuning.json").read_text() == '{"tuned": []}'
    assert len([*bundle.glob(".tuning.json.partial-*")]) == 1
    engine = FakeEngine(language(0, vocab_size=260), vocab_size=260, max_length=400)
    tuning.tune(Bundle.open(bundle), engine, 2, contexts=[20], seconds=0.01)
    assert not [*bundle.glob(".tuning.json.partial-*")]
    assert len(json.loads((bundle / "tuning.json").read_text())["tuned"]) == 1


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
