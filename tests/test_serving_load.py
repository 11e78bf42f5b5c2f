"""The load scripts: on a tiny bundle they run, and what is wrong they find."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import measuring
import serving_chaos
import serving_habits
import serving_load
from serving_client import Answer
from serving_questions import Bad, Question, answered
from specplug import BatchDecoder, SpeculativeDecoder
from tests_support.serving import serving


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go."""
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    return tmp_path


def test_clients_of_every_habit(tiny_bundle: Path, results: Path, capsys) -> None:
    arguments = ("--requests", "120", "--pool", "24", "--long-tokens", "400")
    status = serving_chaos.main([str(tiny_bundle), *arguments])
    shown = capsys.readouterr().out
    assert status == 0, shown
    result = json.loads((results / "serving_chaos.json").read_text())
    assert result["requests"] == 120
    assert set(serving_habits.MIX) <= set(result["counts"])
    assert result["counts"]["stalled and given up"]
    assert result["sigterm"]["running"]
    assert "0 violations" in shown


def test_a_wrong_answer_is_found(tiny_bundle: Path) -> None:
    with BatchDecoder.from_bundle(tiny_bundle, max_batch=2, draft_tokens=4) as decoder:
        alone = SpeculativeDecoder(decoder.target, tokenizer=decoder.tokenizer)
        question = answered(alone, Question(chat=False, prompt="one two", max_tokens=4))
        with serving(decoder) as server:
            for texts, number in ((question.texts, 0), (("other",), 6)):
                pool = [replace(question, texts=texts)]
                clients = serving_habits.Clients(server, pool=pool, long=(), bad=())
                deadline = time.monotonic() + 60
                plan = ["answered"] * 6
                asyncio.run(clients.run(plan, connections=2, seed=0, deadline=deadline))
                assert clients.done == 6
                assert len(clients.violations) == number, clients.violations
                assert all("'other'" in violation for violation in clients.violations)


def test_what_is_wrong_with_an_answer() -> None:
    question = Question(
        chat=True, prompt="x", max_tokens=3, n=2, texts=("ab", "cd"), reasons=("stop", "length"),
        tokens=5,
    )  # fmt: skip
    right = Answer(
        200, {}, {0: "ab", 1: "cd"}, {0: "stop", 1: "length"}, {"a"}, {"completion_tokens": 5}
    )
    assert question.wrong(right) is None
    for what, changed in {
        "text": {"texts": {0: "cd", 1: "ab"}},
        "reasons": {"reasons": {0: "stop"}},
        "counted": {"usage": {"completion_tokens": 4}},
        "several": {"ids": {"a", "b"}},
    }.items():
        assert what in str(question.wrong(replace(right, **changed)))
    assert question.wrong_so_far(Answer(200, {}, {1: "c"})) is None
    for texts in ({0: "c"}, {2: ""}, {0: "abc"}):
        assert question.wrong_so_far(Answer(200, {}, texts))


def test_what_is_wrong_with_a_refusal() -> None:
    bad = Bad("wrong", 400, b"{", "invalid_json")
    error = {"message": "m", "type": "t", "param": None, "code": "invalid_json"}
    assert bad.wrong(Answer(400, error=error)) is None
    assert "status 200" in str(bad.wrong(Answer(200, error=error)))
    assert "shape" in str(bad.wrong(Answer(400, error={"message": "m"})))
    assert "code other" in str(bad.wrong(Answer(400, error=error | {"code": "other"})))


def test_a_plan_is_the_seeds_alone() -> None:
    plan = serving_habits.planned(500, Random(3))
    assert plan == serving_habits.planned(500, Random(3))
    assert plan != serving_habits.planned(500, Random(4))
    assert len(plan) == 500
    assert plan.count("stalled") == 10


def test_throughput_by_load(tiny_bundle: Path, results: Path, capsys) -> None:
    arguments = ("--prompts", "4", "--tokens", "8", "--repeats", "1", "--loads", "2")
    serving_load.main([str(tiny_bundle), *arguments])
    result = json.loads((results / "serving_load.json").read_text())
    assert result["same_texts"] == result["runs"] == 2
    for system in ("plain", "auto"):
        [run] = result["loads"]["2"][system]
        assert run["tokens_per_second"] > 0
        assert 0 < run["first_token_p50"] <= run["first_token_p95"]
    assert "auto over plain" in capsys.readouterr().out
