"""What a target writes for a head to learn from: its own text, and what it thought."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import specplug
from specplug import BatchDecoder, SamplingParams
from specplug.bench.workload import Item, read_workload
from specplug.bundle import Bundle
from specplug.distilling.answers import (
    LIKELIEST,
    AnswerOptions,
    AnswerProgress,
    Recorder,
    save_answers,
    write_answers,
)
from specplug.distilling.shards import Record, Shards, ShardWriter
from specplug.opening import open_parts
from specplug.types import SpecplugError
from tests_support.heads import features_of

PROMPTS = [
    Item(str(number), "", f"question {number}: {'why ' * (number * 7 % 40)}")
    for number in range(12)
]
OPTIONS = AnswerOptions(max_tokens=20, seed=3)

Make = Callable[..., BatchDecoder]


@pytest.fixture
def make(tiny_bundles: dict[str, Path]) -> Iterator[Make]:
    opened: list[BatchDecoder] = []

    def made(max_batch: int = 4, **options: Any) -> BatchDecoder:
        parts = open_parts(Bundle.open(tiny_bundles["standard-fp32"]), "none", max_batch=max_batch)
        arguments = parts | {"drafter": Recorder(), "prefix_cache_bytes": 0} | options
        opened.append(BatchDecoder(**arguments, draft_tokens=0))
        return opened[-1]

    yield made
    for decoder in opened:
        decoder.close()


def assert_same(one: Shards, other: Shards) -> None:
    assert one.ids == other.ids
    for ours, theirs in zip(one, other, strict=True):
        assert ours.begin == theirs.begin
        for name in ("tokens", "states", "ids", "logits"):
            assert np.array_equal(
                torch.as_tensor(getattr(ours, name)).float(),
                torch.as_tensor(getattr(theirs, name)).float(),
            ), name


def test_records_are_what_the_target_says_and_thinks(
    make: Make, model: Any, tiny_bundles: dict[str, Path], tmp_path: Path
) -> None:
    records = write_answers(make(), PROMPTS, tmp_path / "answers", OPTIONS)
    assert records.ids == tuple(range(len(PROMPTS)))
    with specplug.SpeculativeDecoder.from_bundle(tiny_bundles["standard-fp32"]) as alone:
        for record in records:
            sampling = SamplingParams(
                temperature=OPTIONS.temperatures[record.id % 2], seed=3 + record.id
            )
            prompt = alone.encode(PROMPTS[record.id].prompt)
            said = alone.generate(prompt, max_tokens=20, sampling=sampling)
            assert record.tokens.tolist() == [*prompt, *said.token_ids]
            assert record.begin == len(prompt)
    for record in records:
        tokens = record.tokens.tolist()
        expected = features_of(model, tokens[:-1], (0, 1))[0]
        assert torch.allclose(record.states.float(), expected, rtol=0.01, atol=0.01)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]])).logits[0, record.begin - 1 :]
        best = logits.topk(LIKELIEST).values.numpy()
        np.testing.assert_allclose(record.logits, best, rtol=0, atol=1e-3)
        found = np.take_along_axis(logits.numpy(), record.ids.astype(np.int64), 1)
        np.testing.assert_allclose(record.logits, found, rtol=0, atol=1e-3)


@pytest.mark.parametrize("ended_after", [1, 5, 11])
def test_an_interrupted_run_ends_with_the_same_records(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_after: int
) -> None:
    whole = write_answers(make(), PROMPTS, tmp_path / "whole", OPTIONS)
    monkeypatch.setattr(ShardWriter, "flush", _flush_whole_only(ShardWriter.flush))

    def interrupt(progress: AnswerProgress) -> None:
        if progress.prompts >= ended_after:
            raise KeyboardInterrupt

    folder = tmp_path / "again"
    with pytest.raises(KeyboardInterrupt):
        write_answers(make(), PROMPTS, folder, OPTIONS, interrupt)
    assert len(Shards(folder)) < len(PROMPTS)
    assert_same(write_answers(make(2), PROMPTS, folder, OPTIONS), whole)


def _flush_whole_only(flush: Callable[[ShardWriter], None]) -> Callable[[ShardWriter], None]:
    """Records of a file that is not full are lost at every second time, as in a kill."""
    times = iter(range(1000))

    def some(writer: ShardWriter) -> None:
        if next(times) % 2:
            flush(writer)
        else:
            writer._records.clear()

    return some


def test_no_prompt_is_begun_beyond_the_size_limit(make: Make, tmp_path: Path) -> None:
    first = write_answers(make(1), PROMPTS[:3], tmp_path / "first", OPTIONS)
    size = sum(file.stat().st_size for file in (tmp_path / "first").iterdir())
    limited = AnswerOptions(max_tokens=20, seed=3, most_bytes=size)
    assert len(first) == 3
    assert_same(write_answers(make(1), PROMPTS, tmp_path / "first", limited), first)


def test_a_prompt_without_room_has_no_record(make: Make, tmp_path: Path) -> None:
    items = [Item("", "", text) for text in ("a", "x" * 2000, "b")]
    items += [Item("", "", "a", "x" * 2000), Item("", "", "c", "d")]
    records = write_answers(make(), items, tmp_path / "answers", OPTIONS)
    assert records.ids == (0, 2, 4)


def test_known_answers_are_read_as_if_they_were_written(make: Make, tmp_path: Path) -> None:
    options = AnswerOptions(max_tokens=300, seed=3)
    written = write_answers(make(), PROMPTS, tmp_path / "written", options)
    decoder = make()
    assert decoder.tokenizer is not None
    for name in ("answers.jsonl", "answers.jsonl.gz"):
        save_answers(written, PROMPTS, decoder.tokenizer, tmp_path / name)
    known = read_workload(tmp_path / "answers.jsonl")
    assert read_workload(tmp_path / "answers.jsonl.gz") == known
    assert [item.prompt for item in known] == [item.prompt for item in PROMPTS]
    assert {item.ended for item in known} == {True, False}
    read = write_answers(decoder, known, tmp_path / "read", options)
    same = 0
    for ours, theirs in zip(read, written, strict=True):
        if not np.array_equal(ours.tokens, theirs.tokens):
            continue  # random bytes are no text, and come back as others
        same += 1
        assert ours.begin == theirs.begin
        assert torch.equal(ours.states, theirs.states)
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.logits, theirs.logits)
    assert same > 0


def test_other_decoders_are_refused(make: Make, tmp_path: Path) -> None:
    for decoder in (make(prefix_cache_bytes=1 << 20), make(drafter=None)):
        with pytest.raises(SpecplugError, match="Recorder"):
            write_answers(decoder, PROMPTS, tmp_path / "answers", OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_tokens": 3}, "max_tokens is 3"),
        ({"temperatures": ()}, "temperatures"),
        ({"temperatures": (0.0, -1.0)}, "-1.0"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecplugError, match=message):
        AnswerOptions(**options)


def test_shards_of_any_size_hold_the_same(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    made = []
    for number in random.permutation(20).tolist():
        length, begin = int(random.integers(6, 40)), int(random.integers(1, 5))
        made.append(
            Record(
                number,
                random.integers(0, 99, size=length).astype(np.int32),
                begin,
                torch.randn(length - 1, 6).to(torch.bfloat16),
                random.integers(0, 99, size=(length - begin, 4)).astype(np.int32),
                random.normal(size=(length - begin, 4)).astype(np.float32),
            )
        )
    folders = []
    for size in (1, 1000, 1 << 20):
        folders.append(tmp_path / str(size))
        with ShardWriter(folders[-1], size) as writer:
            for record in made:
                writer.add(record)
        assert writer.written == sum(file.stat().st_size for file in folders[-1].iterdir())
    expected = sorted(made, key=lambda record: record.id)
    for folder in folders:
        found = Shards(folder)
        assert found.lengths == [len(record.tokens) for record in expected]
        assert found.answer_lengths == [len(each.tokens) - each.begin for each in expected]
        for ours, theirs in zip(found, expected, strict=True):
            assert ours.id == theirs.id
            assert torch.equal(ours.states, theirs.states)
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert np.array_equal(ours.ids, theirs.ids)
            assert np.array_equal(ours.logits, theirs.logits)
        for ours, theirs in zip(found.without_states(), expected, strict=True):
            assert len(ours.states) == 0
            assert np.array_equal(ours.tokens, theirs.tokens)
            assert np.array_equal(ours.ids, theirs.ids)
