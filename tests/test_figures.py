"""The documents' tables are those of the result files, and a change of either is found."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import figures

ROOT = Path(__file__).parent.parent


def test_every_table_is_asked_for_and_filled() -> None:
    text = "".join((ROOT / name).read_text(encoding="utf-8") for name in figures.DOCUMENTS)
    asked = re.findall(r"<!-- figures: (\w+) -->", text)
    assert set(asked) == set(figures.TABLES)
    assert text.count("<!-- /figures -->") == len(asked)


def test_the_tests_that_promises_name_are_there() -> None:
    text = (ROOT / "docs" / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(test_\w+)`", text)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / "tests" / f"{name}.py").is_file()] == []


def test_a_table_comes_out_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> dict:
        assert name == "export"
        return {
            "runs": {"fp32": {"seconds": {"median": 19.6}, "peak_megabytes": {"median": 1500.4}}}
        }

    monkeypatch.setattr(figures, "read_result", found)
    text = "before\n<!-- figures: exporting -->\nold\n<!-- /figures -->\nafter"
    filled = figures.fill(text)
    assert "| seconds | 20 |\n| peak MB | 1500 |" in filled
    assert "old" not in filled
    assert filled.startswith("before\n<!--")
    assert filled.endswith("-->\nafter")
    assert figures.fill(filled) == filled


def test_unknown_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="figures: nothing: there are acceptance"):
        figures.fill("<!-- figures: nothing -->\n<!-- /figures -->")


def test_a_document_that_says_something_else_fails_the_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in figures.DOCUMENTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["figures.py", "--check"])
    figures.main()
    readme = tmp_path / "README.md"
    changed = readme.read_text(encoding="utf-8").replace("| seconds |", "| seconds, faked |")
    readme.write_text(changed, encoding="utf-8")
    with pytest.raises(SystemExit, match=r"README\.md has other figures"):
        figures.main()
    assert readme.read_text(encoding="utf-8") == changed


@pytest.mark.parametrize(
    ("nats", "written"),
    [(0, "0"), (1e-11, "0"), (0.00339, "0.0034"), (0.0334, "0.033"), (0.2, "0.200")],
)
def test_divergences_keep_two_digits(nats: float, written: str) -> None:
    assert figures._kl(nats) == written


def test_the_command_runs_by_itself() -> None:
    command = [sys.executable, ROOT / "benchmarks" / "figures.py", "--check"]
    subprocess.run(command, check=True)
