"""docs/INPUTS.md lists what the readers read: neither more nor less."""

from __future__ import annotations

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[1] / "docs" / "INPUTS.md"


def listed(section: str, table: int = 0) -> set[str]:
    """The names in the first column of a section's table, without their backticks.

    Args:
        section: its heading.
        table: which of its tables, from 0.
    """
    text = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    rows = tables[table].splitlines()[2:]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


def test_the_document_has_sections() -> None:
    assert DOCUMENT.read_text(encoding="utf-8").count("\n## ") >= 10
