"""Conversations that a target writes for a head to learn from."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heads import conversations
from heads.conversations import Conversation, Template, converse
from specplug.bench.workload import read_workload
from specplug.distilling.answers import known_text
from specplug.distilling.distill import tokenizer_of
from specplug.distilling.shards import Shards
from specplug.export.source import open_source
from tests_support.heads import features_of

LAYERS = (0, 1)
ROWS = 240


@pytest.fixture
def written(model: Any, monkeypatch: pytest.MonkeyPatch) -> list[Conversation]:
    """A wave of which rows end here and there: the target says what ends its questions often."""
    monkeypatch.setattr(conversations, "LONGEST_QUESTION", 60)
    monkeypatch.setattr(conversations, "LONGEST_ANSWER", 12)
    monkeypatch.setattr(conversations, "SHORTEST_QUESTION", 1)
    monkeypatch.setattr(conversations, "SHORTEST_ANSWER", 4)
    begin = [5, 6, 7]
    with torch.no_grad():
        said = model(torch.tensor([begin])).logits[0, -1].topk(12).indices.tolist()
    template = Template(begin, [said[0], 9, 8], frozenset(said[1:4]))
    return list(converse(model, LAYERS, template, ROWS, seed=1))


def test_a_record_is_what_the_target_says_and_thinks(
    written: list[Conversation], model: Any
) -> None:
    assert len(written) > ROWS / 10
    assert len({len(talk.tokens) for talk in written}) > 5
    for number, talk in enumerate(written):
        record, template = talk.record(number), talk.template
        tokens = record.tokens.tolist()
        assert tokens[: len(template.begin)] == template.begin
        assert tokens[record.begin - 3 : record.begin] == template.turn
        with torch.no_grad():
            logits = model(torch.tensor([tokens[:-1]])).logits[0, record.begin - 1 :]
        if talk.temperature == 0:
            assert tokens[record.begin :] == logits.argmax(-1).tolist()
        found = np.take_along_axis(logits.numpy(), record.ids.astype(np.int64), 1)
        np.testing.assert_allclose(record.logits, found, rtol=0, atol=1e-3)
        states = features_of(model, tokens[:-1], LAYERS)[0]
        assert torch.allclose(record.states.float(), states, rtol=0.01, atol=0.01)


def test_an_answer_ends_where_the_target_ends_it_or_is_cut_off(
    written: list[Conversation],
) -> None:
    assert {talk.whole for talk in written} == {True, False}
    for talk in written:
        answer, ends = talk.tokens[talk.answer :], talk.template.ends
        assert talk.whole is (answer[-1] in ends)
        assert not ends & set(answer[:-1])
        assert len(answer) <= 12


def test_the_command_writes_what_a_distillation_reads(tiny_source: Path, tmp_path: Path) -> None:
    output, folder = tmp_path / "said.jsonl", tmp_path / "records"
    script = Path(conversations.__file__)
    asked = [tiny_source, "--rows", 24, "--waves", 1, "--records", folder, "-o", output]
    subprocess.run([sys.executable, script, *map(str, asked)], check=True)
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    if not lines:  # whether a random target ends a question at all is chance
        pytest.fail("give more rows")
    tokenizer = tokenizer_of(open_source(tiny_source), tmp_path)
    by_number = {f"own-{record.id}": record for record in Shards(folder)}
    for item in read_workload(output):
        record = by_number[item.id]
        assert len(record.tokens) - record.begin <= conversations.LONGEST_ANSWER
        text, begin = known_text(tokenizer, item)
        assert begin > 0
        assert tokenizer.decode(text[begin:]) == tokenizer.decode(record.tokens[record.begin :])


def test_a_question_that_is_no_text_is_left_out(tiny_source: Path, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(open_source(tiny_source), tmp_path)
    mark, word = tokenizer.stop_token_ids[0], tokenizer.encode("so", special_tokens=False)
    template = Template([mark], [mark, *word], frozenset([mark]))
    for question, told in ([mark, mark], False), (word, True):
        talk = Conversation(template, 0.0, [mark, *question, *template.turn, *word])
        talk.answer = len(talk.tokens) - len(word)
        assert (talk.line(7, tokenizer) is not None) is told
