"""The prompts that heads learn from: distinct, reproducible, none of what heads are judged by."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from heads import prompts

ROOT = Path(__file__).parent.parent
FILE = ROOT / "benchmarks/heads/prompts.jsonl"
CONVERSATIONS = ROOT / "benchmarks/heads/conversations.jsonl.gz"
RUN = 8  # words in a row that a prompt may not share with an evaluation prompt

EVALUATION = [
    json.loads(line)["prompt"]
    for path in (
        ROOT / "specplug/bench/prompts.jsonl",
        *sorted((ROOT / "benchmarks/workloads").glob("*.jsonl")),
    )
    for line in path.read_text(encoding="utf-8").splitlines()
]


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def runs(text: str) -> set[tuple[str, ...]]:
    parts = words(text)
    return {tuple(parts[at : at + RUN]) for at in range(len(parts) - RUN + 1)}


def test_the_generator_writes_the_file_byte_for_byte():
    script = ROOT / "benchmarks/heads/prompts.py"
    written = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
    assert written == FILE.read_bytes()


def test_ids_and_prompts_are_distinct(rows):
    assert len(rows) >= 5500
    assert len({row["id"] for row in rows}) == len(rows)
    assert len({" ".join(words(row["prompt"])) for row in rows}) > 0.99 * len(rows)
    assert len({prompts.folded(row["prompt"]) for row in rows}) == len(rows)


def test_every_kind_has_its_share_in_the_file_and_in_its_beginning(rows):
    assert Counter(row["category"] for row in rows) == prompts.SHARES
    beginning = Counter(row["category"] for row in rows[:600])
    for kind, share in prompts.SHARES.items():
        assert beginning[kind] == pytest.approx(share / 10, rel=0.35), kind


def test_prompts_are_filled_and_short(rows):
    lengths = [len(row["prompt"].split()) for row in rows]
    assert max(lengths) <= prompts.MOST_WORDS
    assert sum(length < 80 for length in lengths) > 0.8 * len(lengths)
    assert [row for row in rows if prompts.SLOT.search(row["prompt"])] == []
    assert [row for row in rows if row["prompt"] != row["prompt"].strip()] == []


def test_none_is_an_evaluation_prompt_or_shares_a_run_of_its_words(rows):
    assert len(EVALUATION) > 100
    judged = {prompts.folded(prompt) for prompt in EVALUATION}
    judged_runs = set().union(*map(runs, EVALUATION))
    own = gzip.decompress(CONVERSATIONS.read_bytes()).decode("utf-8").splitlines()
    assert len(own) > 3000
    for row in [*rows, *map(json.loads, own)]:
        assert prompts.folded(row["prompt"]) not in judged
        assert not runs(row["prompt"]) & judged_runs, row


def test_material_that_is_not_as_it_should_be_is_refused(tmp_path):
    def refused(text: str, message: str) -> None:
        (tmp_path / "lists.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            prompts.read_material(tmp_path)

    refused("hello\n", "in no list")
    refused("[one]\na\n[one]\nb\n", "list 'one' comes twice")
    refused("[one]\na\na\n", "'a' comes twice in its list")


def test_slots_of_a_prompt_agree_and_numbered_ones_differ():
    lists = {"colour": ["red", "blue"], "thing": ["<colour> and <colour2>"]}
    for seed in range(20):
        filling = prompts.Filling(lists, prompts.random.Random(seed))
        text = filling.text("a=2..9 b=a*3 | <thing>, <colour>: <a> <b>")
        first, second, third, number, triple = re.findall(r"red|blue|\d+", text)
        assert first == third != second
        assert int(triple) == 3 * int(number)
