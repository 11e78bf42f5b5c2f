"""The target as PyTorch runs it: how a GPU writes and reads answers, here on the CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specplug.bench.workload import Item
from specplug.distilling import torch_target
from specplug.distilling.answers import AnswerOptions, AnswerProgress
from specplug.distilling.distill import tokenizer_of
from specplug.distilling.shards import Shards, ShardWriter
from specplug.distilling.torch_target import TorchTarget, write_answers
from specplug.export.source import open_source
from specplug.text import Tokenizer
from tests_support.heads import features_of, own_text

LAYERS = (0, 1)
PROMPTS = [
    Item(str(number), "", f"question {number}: {'why ' * (number * 7 % 40)}")
    for number in range(12)
]
OPTIONS = AnswerOptions(max_tokens=20, seed=3)


@pytest.fixture(scope="module")
def target(tiny_source: Path) -> TorchTarget:
    return TorchTarget(open_source(tiny_source), LAYERS, "cpu")


@pytest.fixture
def tokenizer(tiny_source: Path, tmp_path: Path) -> Tokenizer:
    return tokenizer_of(open_source(tiny_source), tmp_path)


def test_records_are_what_the_target_says_and_thinks(
    target: TorchTarget,
    tokenizer: Tokenizer,
    model: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_target, "_READ", 400)
    monkeypatch.setattr(torch_target, "_SCORED", 7)
    items = [*PROMPTS, Item("", "", "known", "an answer"), Item("", "", "cut", "an ans", False)]
    records = write_answers(target, tokenizer, items, tmp_path / "answers", OPTIONS, 5)
    assert records.ids == tuple(range(len(items)))
    for record in records:
        tokens, item = record.tokens.tolist(), items[record.id]
        prompt, said = tokens[: record.begin], tokens[record.begin :]
        assert prompt == tokenizer.encode_prompt(item.prompt)
        if item.answer:
            assert tokenizer.decode(said) == item.answer
            assert (said[-1] in tokenizer.stop_token_ids) is item.ended
        elif record.id % 2 == 0:  # greedily
            expected = own_text(model, prompt, len(said))[len(prompt) :]
            assert said == expected
            assert len(said) == 20 or said[-1] in tokenizer.stop_token_ids
        expected_states = features_of(model, tokens[:-1], LAYERS)[0]
        assert torch.allclose(record.states.float(), expected_states, rtol=0.01, atol=0.01)
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]])).logits[0, record.begin - 1 :]
        found = np.take_along_axis(logits.numpy(), record.ids.astype(np.int64), 1)
        np.testing.assert_allclose(record.logits, found, rtol=0, atol=1e-3)
        best = logits.topk(record.ids.shape[1]).values.numpy()
        np.testing.assert_allclose(record.logits, best, rtol=0, atol=1e-3)


@pytest.mark.parametrize("ended_after", [3, 8])
def test_an_interrupted_run_ends_with_the_same_records(
    target: TorchTarget,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended_after: int,
) -> None:
    def write(folder: str, report: Any = lambda progress: None) -> Shards:
        return write_answers(target, tokenizer, PROMPTS, tmp_path / folder, OPTIONS, 4, report)

    def interrupt(progress: AnswerProgress) -> None:
        if progress.prompts >= ended_after:
            raise KeyboardInterrupt

    whole = write("whole")
    monkeypatch.setattr(torch_target, "_SHARD", 1)
    with pytest.raises(KeyboardInterrupt):
        write("again", interrupt)
    assert 0 < len(Shards(tmp_path / "again")) < len(PROMPTS)
    (*_, last) = sorted((tmp_path / "again").iterdir())
    last.unlink()  # a part of a batch is lost
    again = write("again")
    assert again.ids == whole.ids
    for ours, theirs in zip(again, whole, strict=True):
        assert np.array_equal(ours.tokens, theirs.tokens)
        assert torch.allclose(ours.states.float(), theirs.states.float(), rtol=0.01, atol=0.01)


def test_what_has_no_room_has_no_record(
    target: TorchTarget, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    items = [Item("", "", text) for text in ("a", "x" * 2000, "b")]
    items += [Item("", "", "a", "x" * 2000), Item("", "", "c", "d")]
    records = write_answers(target, tokenizer, items, tmp_path / "answers", OPTIONS, 2)
    assert records.ids == (0, 2, 4)
    size = ShardWriter(tmp_path / "answers").written
    full = AnswerOptions(max_tokens=20, seed=3, most_bytes=size)
    again = write_answers(target, tokenizer, [*items, items[0]], tmp_path / "answers", full, 2)
    assert again.ids == records.ids
