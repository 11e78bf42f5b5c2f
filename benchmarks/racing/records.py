"""What was measured, a line a record, kept as it is made; a later run goes on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class Records:
    """The records of one race, in a file of JSON lines.

    The first line holds the settings that all records share. A run that was killed may leave a
    torn last line, which is dropped on opening: its record is made again.

    Args:
        path: of the file; made if it is not there.
        settings: of this run.

    Raises:
        ValueError: the file's records were made with other settings.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = _whole_lines(path) if path.exists() else []
        if lines and lines[0] != settings:
            raise ValueError(
                f"{path} holds records made with {lines[0]}, not with {settings}: "
                "give this race another --name, or remove the file"
            )
        self._records: list[Record] = lines[1:]
        if not lines:
            self._append(settings)

    def of(self, kind: str) -> list[Record]:
        """Records of a kind, in the order they were made."""
        return [record for record in self._records if record["kind"] == kind]

    def add(self, kind: str, **content: Any) -> None:
        """Keep a record, on disk before this returns."""
        record = {"kind": kind, **content}
        self._append(record)
        self._records.append(record)

    def _append(self, content: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return [json.loads(line) for line in whole.splitlines()]
