"""What was reported while training, a line of JSON each, across interruptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from specplug.distilling.options import Progress
from specplug.staging import replace_file

JOURNAL = "training.jsonl"


class Journal:
    """Adds lines to a training's journal.

    Args:
        folder: of the training.
        step: that it goes on from; what was written of later ones, which are done again, goes.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self._path = folder / JOURNAL
        kept = [line for line in read_journal(folder) if line["step"] <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        replace_file(self._path, lambda part: part.write_text(text))

    def add(self, progress: Progress) -> None:
        """One line more."""
        found = progress.acceptance
        line = {
            name: getattr(progress, name)
            for name in ("step", "steps", "epoch", "tokens_per_second", "loss", "seconds_left")
        }
        if found is not None:
            line |= {"acceptance": list(found.by_position), "length": found.length}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of a training's journal; none where there is no journal, or a line was cut off."""
    path = folder / JOURNAL
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]
