"""The race beside the peers: its arithmetic, its workers, and that nothing is lost or doubled."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from race import print_tables
from racing.quality import compare
from racing.records import Records
from racing.report import (
    against,
    by_group,
    completed,
    decoding_speed,
    first_tokens,
    over_groups,
    report,
    speed,
)
from racing.running import Prompt, Race
from racing.systems import System
from racing.workers import Worker, WorkerError

SETTINGS = {"workload": "made up"}
FAKE = Path(__file__).parent / "tests_support/fake_worker.py"


def system(name: str, *, tool: str = "specplug", plain: str | None = None, **rest: Any) -> System:
    return System(
        name=name, tool=tool, precision="fp32", model=FAKE, worker=FAKE, plain=plain, **rest
    )


SYSTEMS = [
    system("slow", tool="transformers", slow=True),
    system("peer", tool="transformers"),
    system("peer lookup", tool="transformers", plain="peer", drafter="lookup"),
    system("specplug"),
    system("specplug auto", plain="specplug", drafter="auto"),
]
PROMPTS = [Prompt(f"{group}-{i}", group, [i, i + 1]) for group in ("chat", "edit") for i in (1, 2)]


def answer(prompt: str, name: str, tokens: int, seconds: float, first: float = 0.0) -> dict:
    return {
        "prompt": prompt,
        "group": prompt.partition("-")[0],
        "system": name,
        "token_ids": [*range(tokens)],
        "first_token_seconds": first,
        "seconds": seconds,
    }


class Unworked:
    """Stands for a worker's process; may be killed after some answers."""

    def __init__(self, system: System, budget: list[int]) -> None:
        self.system, self.versions, self._budget = system, {"fake": "1"}, budget

    def generate(self, token_ids: list[int], max_tokens: int) -> dict[str, Any]:
        self._budget[0] -= 1
        if self._budget[0] < 0:
            raise KeyboardInterrupt
        return {"token_ids": token_ids * max_tokens, "first_token_seconds": 0.1, "seconds": 0.5}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def race(
    path: Path, *, systems: Sequence[System] = SYSTEMS, most: int = 10**9, start: Any = None
) -> Race:
    return Race(
        systems=systems,
        prompts=PROMPTS,
        records=Records(path, SETTINGS),
        alone=Records(path.with_name("alone.jsonl"), SETTINGS),
        max_tokens=3,
        few=1,
        sample=[*range(20)],
        start=start or partial(Unworked, budget=[most]),
    )


def quietly(line: str) -> None:
    pass


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("racing.running.SETTLE", 0.0)


@settings(max_examples=60, deadline=None)
@given(answered=st.integers(0, 25), cut=st.integers(0, 10**4))
def test_a_killed_race_goes_on_without_losing_or_doubling(
    tmp_path_factory: pytest.TempPathFactory, answered: int, cut: int
) -> None:
    path = tmp_path_factory.mktemp("race") / "race.jsonl"
    killed = race(path, most=answered)
    with pytest.raises(KeyboardInterrupt) if answered < 23 else _nothing():
        killed.run(None, quietly)
    written = path.read_bytes()
    first_line = written.index(b"\n") + 1
    torn = written[: max(first_line, len(written) - cut % len(written))]
    path.write_bytes(torn)
    kept = Records(path, SETTINGS).of("answer")
    assert len(kept) == torn.count(b'"kind": "answer"') - (
        0 if torn.endswith(b"\n") else _torn(torn)
    )
    race(path).run(None, quietly)
    made = Records(path, SETTINGS).of("answer")
    assert made[: len(kept)] == kept
    pairs = Counter((record["prompt"], record["system"]) for record in made)
    expected = {(p.id, s.name) for p in PROMPTS for s in SYSTEMS if not s.slow or p.id[-1] == "1"}
    assert pairs == Counter(expected)
    assert not race(path).left()


def _torn(content: bytes) -> int:
    return content.rpartition(b"\n")[2].count(b'"kind": "answer"')


class _nothing:  # noqa: N801
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def test_a_slice_handles_that_many_prompts(tmp_path: Path) -> None:
    path = tmp_path / "race.jsonl"
    for done in (1, 2, 3, 4):
        race(path).run(1, quietly)
        assert len({record["prompt"] for record in race(path).records.of("answer")}) == done


def test_a_new_system_answers_alone(tmp_path: Path) -> None:
    path = tmp_path / "race.jsonl"
    race(path, systems=SYSTEMS[:3]).run(None, quietly)
    race(path).run(None, quietly)
    answered = Counter(record["system"] for record in race(path).records.of("answer"))
    assert answered == {"slow": 2, **{each.name: 4 for each in SYSTEMS[1:]}}


def test_each_prompt_begins_with_another_system(tmp_path: Path) -> None:
    made = race(tmp_path / "race.jsonl", systems=SYSTEMS[1:])
    assert [made.entrants(prompt)[0] for prompt in PROMPTS] == SYSTEMS[1:]
    for prompt in PROMPTS:
        assert {*made.entrants(prompt)} == {*SYSTEMS[1:]}


def test_records_of_other_settings_are_refused(tmp_path: Path) -> None:
    Records(tmp_path / "race.jsonl", SETTINGS)
    with pytest.raises(ValueError, match="another --name"):
        Records(tmp_path / "race.jsonl", {"workload": "another"})


SECONDS = st.floats(0.01, 100)


@given(st.lists(st.tuples(st.integers(1, 200), SECONDS), min_size=1, max_size=12))
def test_speeds_are_geometric_means(measured: list[tuple[int, float]]) -> None:
    answers = [answer(f"g-{i}", "s", n, seconds) for i, (n, seconds) in enumerate(measured)]
    found = by_group(answers)["g"]["tokens_per_second"]
    expected = math.exp(sum(math.log(n / seconds) for n, seconds in measured) / len(measured))
    assert found == pytest.approx(expected)


@given(st.lists(st.tuples(SECONDS, SECONDS), min_size=1, max_size=12), SECONDS)
def test_ratios_are_reciprocal_and_independent_of_the_unit(
    measured: list[tuple[float, float]], unit: float
) -> None:
    prompts = [f"{'ab'[i % 2]}-{i}" for i in range(len(measured))]
    mine = {p: answer(p, "m", 9, s) for p, (s, _) in zip(prompts, measured, strict=True)}
    other = {p: answer(p, "o", 9, s) for p, (_, s) in zip(prompts, measured, strict=True)}
    ratio, back = against(mine, other), against(other, mine)
    assert ratio["all"] * back["all"] == pytest.approx(1)
    assert against(mine, mine)["all"] == pytest.approx(1)
    slower = {p: a | {"seconds": a["seconds"] * unit} for p, a in mine.items()}
    assert against(slower, other)["all"] == pytest.approx(ratio["all"] / unit)


def test_only_common_prompts_are_compared() -> None:
    mine = {p: answer(p, "m", 10, 1.0) for p in ("a-1", "a-2", "b-1")}
    plain = {p: answer(p, "p", 10, s) for p, s in (("a-2", 2.0), ("c-1", 9.0))}
    plain["a-2"]["token_ids"][-1] = 99
    found = against(mine, plain)
    assert found == {
        "groups": {"a": pytest.approx(2)},
        "all": pytest.approx(2),
        "slowest_prompt": pytest.approx(2),
        "same_text": 0,
        "texts": 1,
    }


@given(st.integers(2, 300), SECONDS, SECONDS, st.integers(2, 300))
def test_answers_are_reckoned_at_one_length(
    made: int, first: float, rest: float, length: int
) -> None:
    short = answer("a-1", "s", made, first + rest, first=first)
    found = completed(short, length)
    assert decoding_speed(found) == pytest.approx(decoding_speed(short), rel=1e-6)
    assert found["seconds"] == pytest.approx(first + rest * (length - 1) / (made - 1))
    assert speed(completed(short, made)) == pytest.approx(speed(short))
    assert completed(answer("a-1", "s", 1, 1.0, first=1.0), length)["seconds"] == 1.0


def test_an_answer_of_one_token_has_no_decoding_speed() -> None:
    groups = by_group([answer("a-1", "s", 1, 1.0, first=1.0)])
    assert groups["a"]["decoding_tokens_per_second"] is None
    groups |= by_group([answer("b-1", "s", 11, 3.0, first=1.0)])
    assert over_groups(groups) == {
        "tokens_per_second": pytest.approx(math.sqrt(11 / 3)),
        "decoding_tokens_per_second": pytest.approx(5),
    }


def test_the_best_peer_meets_ours_of_no_less_quality(capsys: pytest.CaptureFixture[str]) -> None:
    systems = [
        system("exact peer", tool="a"),
        system("fast peer", tool="b"),
        system("specplug fp32"),
        system("specplug fp32 auto", plain="specplug fp32"),
        system("specplug int4"),
    ]
    seconds = {
        "exact peer": 4.0, "fast peer": 2.0, "specplug fp32": 3.0, "specplug fp32 auto": 1.6,
        "specplug int4": 1.0,
    }  # fmt: skip
    divergence = {"exact peer": 0.0, "fast peer": 0.1, "specplug fp32": 0.0, "specplug int4": 0.2}
    answers = [answer("a-1", name, 8, taken) for name, taken in seconds.items()]
    alone = [
        {"system": name, "memory": {}, "quality": {"mean_kl": kl}}
        for name, kl in divergence.items()
    ]
    tables = report(systems, answers, alone, length=8)
    row = tables["against_best_peer"]["groups"]["a"]
    assert row["peer"] == "fast peer"
    assert row["specplug"]["system"] == "specplug fp32 auto"  # int4 is faster, and worse
    assert row["ratio"] == pytest.approx(2.0 / 1.6)
    exact = tables["against_each_peer"]["exact peer"]["a"]
    assert exact["specplug"]["system"] == "specplug fp32 auto"
    assert exact["ratio"] == pytest.approx(4.0 / 1.6)
    print_tables(tables)
    assert "fast peer 4, specplug fp32 auto 5: 1.25" in capsys.readouterr().out


def test_first_tokens_are_medians_over_the_best_peers() -> None:
    times = {"peer": (0.2, 0.1, 0.9), "specplug": (0.3, 0.1, 0.1), "slow": (2.0, 2.0, 2.0)}
    answers = [
        answer(f"50-{i}", name, 1, 5.0, first=taken[i])
        for name, taken in times.items()
        for i in range(3)
    ]
    found = first_tokens([system(n, tool=n) for n in times], answers)["50"]
    assert found["best_peer"] == "peer"
    assert found["systems"]["specplug"] == {
        "median_seconds": 0.1,
        "over_best_peer": pytest.approx(0.5),
    }


def test_quality_is_nothing_lost_of_itself_and_known_of_two_coins(tmp_path: Path) -> None:
    chances = np.array([[0.5, 0.5], [0.25, 0.75]], dtype=np.float64)
    np.save(tmp_path / "fair.npy", np.log(chances[:1]).astype(np.float32))
    padded = np.concatenate([np.log(chances[1:]) + 3, [[50.0]]], axis=1)
    np.save(tmp_path / "biased.npy", padded.astype(np.float32))
    same = compare(tmp_path / "fair.npy", tmp_path / "fair.npy")
    assert same == {"tokens": 1, "mean_kl": 0.0, "top1_agreement": 1.0}
    found = compare(tmp_path / "fair.npy", tmp_path / "biased.npy")
    assert found["mean_kl"] == pytest.approx(math.log(2) - math.log(3) / 2, abs=1e-6)
    assert found["top1_agreement"] == 0.0


def test_workers_answer_in_processes_of_their_own(tmp_path: Path) -> None:
    start = partial(Worker, threads=1, stop=[30], log=tmp_path / "log")
    made = race(tmp_path / "race.jsonl", systems=SYSTEMS[1:4], start=start)
    made.look_at_each(tmp_path, quietly)
    made.run(None, quietly)
    alone = {record["system"]: record for record in made.alone.of("alone")}
    assert alone["peer"]["quality"] == {"tokens": 20, "mean_kl": 0.0, "top1_agreement": 1.0}
    assert alone["peer lookup"]["quality"] is None
    assert all(each["memory"]["pss"] > 1e6 for each in alone.values())
    assert [r["token_ids"] for r in made.records.of("answer")][:1] == [[3, 4, 5]]
    assert made.records.of("worker")[0]["versions"] == {"numpy": np.__version__}
    assert "says hello" in (tmp_path / "log").read_text()
    result = report(made.systems, made.records.of("answer"), made.alone.of("alone"), 3)
    assert result["systems"]["peer lookup"]["over_plain"]["same_text"] == len(PROMPTS)
    assert result["systems"]["peer lookup"]["quality"]["mean_kl"] == 0.0


def test_a_worker_stops_after_a_stop_token_and_says_where_it_died(tmp_path: Path) -> None:
    with Worker(system("one"), threads=1, stop=[3], log=tmp_path / "log") as worker:
        assert worker.generate([1], 10)["token_ids"] == [2, 3]
        with pytest.raises(WorkerError, match=r"one: its worker ended; see .*log"):
            worker.generate([77], 1)
    assert "no such token" in (tmp_path / "log").read_text()
