"""Training a head: it drafts while it learns, what is measured is what drafting gets, and a killed
training ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specplug import SpecplugError, SpeculativeDecoder
from specplug.distilling.acceptance import accepted_at, measure
from specplug.distilling.curve import draw_curve
from specplug.distilling.journal import read_journal
from specplug.distilling.options import Progress, TrainingOptions
from specplug.distilling.own_steps import own_states
from specplug.distilling.planning import Counts, plan, time_step
from specplug.distilling.shards import Shards
from specplug.distilling.training import products, train
from specplug.export.source import Source
from specplug.export.speculators import open_head
from tests_support.distilling import (
    LIKELIEST,
    SOME,
    TINY_LAYERS,
    WHOLE,
    batch_of,
    random_records,
    tiny_head,
    write_records,
)
from tests_support.heads import features_of

OPTIONS = TrainingOptions(
    epochs=3, batch=96, row=40, own_steps=3, held_out=0.2, evaluate_every=7, report_every=2,
    learning_rate=3e-3, precision="fp32",
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    return write_records(tmp_path / "records", random_records(24))


# --- training ---------------------------------------------------------------------------------


def test_drafts_are_accepted_where_it_was_measured(
    learned: tuple[Path, list[list[int]]],
    learned_texts: tuple[Shards, list[list[int]]],
    head_source: Source,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A head that learnt a target's texts, measured on them, and drafting in the decoder."""
    # Or second guesses would at times be drafted instead, by how first ones fared.
    monkeypatch.setattr("specplug.drafters.states._MOST_GUESSES", 1)
    bundle, _ = learned
    opened = open_head(bundle.parent / "head", head_source)
    records, model = learned_texts[0][:6], head_source.reference()
    rounds = 0
    with SpeculativeDecoder.from_bundle(bundle, drafter="head", draft_tokens=4) as decoder:
        decoder.stop_token_ids = frozenset()
        decoder._trees = False
        for record in records:
            exact = replace(
                record, states=features_of(model, record.tokens.tolist(), TINY_LAYERS)[0, :-1]
            )
            accepted = accepted_at(opened.head, batch_of([exact], steps=4), torch.float32).sum(0)
            told = decoder.generate(
                record.tokens[: record.begin].tolist(),
                max_tokens=len(record.tokens) - record.begin,
            )
            assert list(told.token_ids) == record.tokens[record.begin :].tolist()
            place = 0
            for drafted, taken in zip(
                told.stats.drafted_per_round, told.stats.accepted_per_round, strict=True
            ):
                assert taken == min(drafted, int(accepted[place]))
                place, rounds = place + taken + 1, rounds + 1
            assert place == len(accepted)
    assert rounds > 30
    everywhere = measure(opened.head, [batch_of(records, steps=4)], torch.float32)
    assert everywhere.length > 2
    untrained = measure(tiny_head(head_source, WHOLE), [batch_of(records, steps=4)], torch.float32)
    assert untrained.length < 1.4


def test_acceptance_counts_drafts_up_to_the_first_that_is_wrong(head_source: Source) -> None:
    batch = batch_of(random_records(4, seed=2))
    head = tiny_head(head_source, WHOLE)
    with torch.no_grad():
        likeliest = head.lm_head(own_states(head, batch)).argmax(-1)
    likeliest[:, ::3] = -2
    likeliest[1, 1::3] = -2
    wanted = torch.where(likeliest < 0, 0 * likeliest, likeliest)
    batch = replace(batch, wanted=torch.where(batch.counts, wanted, -1))
    right = (batch.wanted == head.lm_head(own_states(head, batch)).argmax(-1)).tolist()
    found = measure(head, [batch, batch], torch.float32)
    columns = list(zip(*right, strict=True))
    expected = [sum(all(column[: n + 1]) for column in columns) for n in range(3)]
    assert found.accepted == tuple(2 * count for count in expected)
    assert found.tried == tuple((2 * batch.counts.sum(1)).tolist())
    assert found.length == 1 + sum(
        count / int(tried) for count, tried in zip(expected, batch.counts.sum(1), strict=True)
    )


def trained(shards: Shards, source: Source, folder: Path, options: Any, report: Any = None) -> Any:
    head = tiny_head(source, SOME)
    result = train(shards, head, SOME, folder, options, report or (lambda progress: None))
    return result, {name: w.clone() for name, w in head.state_dict().items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(weight, right[name]) for name, weight in left.items())


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np, torch
from specplug.distilling import checkpoints
from specplug.distilling.options import TrainingOptions
from specplug.distilling.shards import Shards
from specplug.export.source import open_source
from test_distilling_training import OPTIONS, trained
from dataclasses import replace
from itertools import chain

torch.set_num_threads(1)
shards, source, folder, where, step = sys.argv[1:]
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
write = checkpoints.replace_file
saves = 0

def half(path, make):
    global saves
    saves += 1
    if where == "writing" and saves == int(step):
        write(path, lambda part: (part.write_bytes(b"half"), die()))
    write(path, make)

checkpoints.replace_file = half
seen = lambda progress: die() if where == "between" and progress.step >= int(step) else None
options = replace(OPTIONS, checkpoint_seconds=0 if where == "writing" else 0.05)
trained(Shards(Path(shards)), open_source(Path(source)), Path(folder), options, seen)
"""


@pytest.mark.parametrize("where", ["between", "writing"])
def test_a_killed_training_ends_as_if_it_had_not_been(
    where: str, shards: Shards, head_target: Path, head_source: Source, tmp_path: Path
) -> None:
    wanted, weights = trained(shards, head_source, tmp_path / "whole", OPTIONS)
    step = np.random.default_rng().integers(2, wanted.steps)
    print(f"killed at step {step}")
    folder = tmp_path / "killed"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "records", head_target, folder, where, str(step)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    steps: list[int] = []
    found, resumed = trained(
        shards, head_source, folder, OPTIONS, lambda progress: steps.append(progress.step)
    )
    assert same(weights, resumed)
    assert (found.best, found.best_step) == (wanted.best, wanted.best_step)
    assert where == "between" or steps[0] > step - 3
    journals = [read_journal(tmp_path / name) for name in ("whole", "killed")]
    exact = ("step", "epoch", "loss", "acceptance", "length")
    assert [[line.get(key) for key in exact] for line in journals[0]] == [
        [line.get(key) for key in exact] for line in journals[1]
    ]


def test_a_training_that_has_ended_is_not_done_again(
    shards: Shards, head_source: Source, tmp_path: Path
) -> None:
    first, weights = trained(shards, head_source, tmp_path / "head", OPTIONS)
    told: list[Progress] = []
    again, read = trained(shards, head_source, tmp_path / "head", OPTIONS, told.append)
    assert same(weights, read)
    assert not told
    assert replace(again, seconds=0) == replace(first, seconds=0)


def test_a_folder_of_another_training_is_refused(
    shards: Shards, head_source: Source, tmp_path: Path
) -> None:
    trained(shards, head_source, tmp_path / "head", replace(OPTIONS, epochs=1))
    for options in (replace(OPTIONS, epochs=2), replace(OPTIONS, epochs=1, seed=1)):
        with pytest.raises(SpecplugError, match="is of a training with other texts or options"):
            trained(shards, head_source, tmp_path / "head", options)
    (tmp_path / "head" / "checkpoint.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(SpecplugError, match="can be read: delete it to train anew"):
        trained(shards, head_source, tmp_path / "head", replace(OPTIONS, epochs=1))


def test_it_ends_when_acceptance_no_longer_grows(
    shards: Shards, head_source: Source, tmp_path: Path
) -> None:
    """With the weights that did best, which are those of a training that ended there."""
    options = replace(OPTIONS, epochs=12, patience=2, evaluate_every=3, learning_rate=1e-6)
    result, weights = trained(shards, head_source, tmp_path / "head", options)
    assert result.stopped_early
    assert result.steps == result.best_step + 6
    measured = [line for line in read_journal(tmp_path / "head") if "length" in line]
    assert result.best.length == max(line["length"] for line in measured)
    assert [line["step"] for line in measured][-3] == result.best_step
    again, read = trained(shards, head_source, tmp_path / "head", options)
    assert same(weights, read)
    assert again.stopped_early


def test_what_is_reported(shards: Shards, head_source: Source, tmp_path: Path) -> None:
    told: list[Progress] = []
    result, _ = trained(shards, head_source, tmp_path / "head", OPTIONS, told.append)
    assert [p.step for p in told] == [
        s for s in range(1, result.steps + 1) if s % 2 == 0 or s % 7 == 0 or s == result.steps
    ]
    assert all(p.steps == result.steps and p.tokens_per_second > 0 for p in told)
    assert {p.epoch for p in told} == {0, 1, 2}
    assert told[-1].seconds_left == 0
    assert told[-1].loss < told[0].loss
    assert [p.step for p in told if p.acceptance] == [
        s for s in range(1, result.steps + 1) if s % 7 == 0 or s == result.steps
    ]
    assert (result.records, result.stopped_early) == (24, False)
    assert 0 < result.held_out < 12
    draw_curve(tmp_path / "head", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_a_curve_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecplugError, match="has no lines"):
        draw_curve(tmp_path, tmp_path / "curve.png")


def test_bf16_learns_too(shards: Shards, head_source: Source, tmp_path: Path) -> None:
    told: list[Progress] = []
    options = replace(OPTIONS, precision="bf16")
    _, weights = trained(shards, head_source, tmp_path / "head", options, told.append)
    assert told[-1].loss < told[0].loss - 0.1
    assert all(weight.dtype is torch.float32 for weight in weights.values())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"epochs": 0}, "epochs is 0: give 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan: give more than 0"),
        ({"held_out": 0.0}, "held_out is 0.0: give a share between 0 and 1"),
        ({"row": 97}, "row is 97: give no more than batch, 96"),
        ({"precision": "int8"}, "precision is 'int8': give auto, bf16 or fp32"),
    ],
)
def test_options_that_cannot_be_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecplugError, match=message):
        replace(OPTIONS, **changed)


def test_trainings_that_cannot_be_are_refused(
    shards: Shards, head_source: Source, tmp_path: Path
) -> None:
    one = write_records(tmp_path / "one", [replace(shards[0], id=number) for number in range(5)])
    with pytest.raises(SpecplugError, match="5 records, 5 of them held out: give more prompts"):
        trained(one, head_source, tmp_path / "a", OPTIONS)
    with pytest.raises(SpecplugError, match="device is 'tpu'"):
        products("auto", "tpu")
    with pytest.raises(SpecplugError, match=r"the loss is nan at step \d+: give a lower"):
        trained(shards, head_source, tmp_path / "b", replace(OPTIONS, learning_rate=1e30))


# --- plan -------------------------------------------------------------------------------------


def test_a_plan_is_what_it_comes_to(shards: Shards, head_source: Source, tmp_path: Path) -> None:
    result, _ = trained(shards, head_source, tmp_path / "head", OPTIONS)
    answers = sum(shards.answer_lengths)
    counts = Counts(
        records=len(shards),
        prompt_tokens=sum(shards.lengths) - answers,
        answer_tokens=answers,
        likeliest=LIKELIEST,
    )
    shape = tiny_head(head_source, SOME).shape
    drawn = replace(OPTIONS, held_out=result.held_out / len(shards))  # of so few, by chance
    found = plan(counts, shape, drawn, answer_speed=50, entry_seconds=0.001)
    written = sum(file.stat().st_size for file in (tmp_path / "records").iterdir())
    assert found.answer_bytes == pytest.approx(written, rel=0.1)
    assert found.steps == pytest.approx(result.steps, rel=0.3)
    assert found.answer_seconds == pytest.approx(answers / 50)
    entries = 0.001 * 96 * found.steps
    assert entries < found.training_seconds < 1.5 * entries
    checkpoint = (tmp_path / "head" / "checkpoint.pt").stat().st_size
    assert checkpoint < found.training_bytes < 4 * checkpoint
    assert found.memory_bytes > checkpoint
    assert time_step(shape, OPTIONS, counts, trials=1) > 0
