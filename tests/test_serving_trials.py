"""The trials of attacks and faults: on a tiny bundle they run, and what is wrong they find."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import measuring
import serving_attacks
import serving_faults
from serving_attackers import ATTACKS

BRIEF = ("empty messages", "wide schemas", "biased tokens", "slow headers", "early hang-ups")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where results go."""
    monkeypatch.setattr(measuring, "RESULTS", tmp_path)
    return tmp_path


def test_a_bystander_beside_attacks(tiny_bundle: Path, results: Path, capsys) -> None:
    arguments = ("--seconds", "1.5", "--limit", "10", "--attacks", *BRIEF)
    status = serving_attacks.main([str(tiny_bundle), *arguments])
    shown = capsys.readouterr().out
    assert status == 0, shown
    result = json.loads((results / "serving_attacks.json").read_text())
    assert [one["attack"] for one in result["attacks"]] == [serving_attacks.CALM, *BRIEF]
    assert all(one["chunks"] for one in result["attacks"])


def test_a_gap_is_found(tiny_bundle: Path, results: Path, capsys) -> None:
    arguments = ("--seconds", "0.5", "--limit", "1e-9", "--attacks", "nested arrays")
    assert serving_attacks.main([str(tiny_bundle), *arguments]) == 1
    assert "a gap of" in capsys.readouterr().out


def test_every_body_fits_into_the_servers_limit() -> None:
    bodies = [
        body
        for attack in ATTACKS.values()
        for cell in attack.__closure__ or ()
        if isinstance(cell.cell_contents, tuple)
        for body in cell.cell_contents
    ]
    assert len(bodies) > 20
    assert max(map(len, bodies)) <= 1 << 20


def test_an_engine_that_fails_under_load(tiny_bundle: Path, results: Path, capsys) -> None:
    arguments = ("--requests", "100", "--pool", "12", "--long-tokens", "60")
    status = serving_faults.main([str(tiny_bundle), *arguments])
    shown = capsys.readouterr().out
    assert status == 0, shown
    result = json.loads((results / "serving_faults.json").read_text())
    assert result["counts"]["failed by name"]
    assert result["counts"]["answered"]
