"""Prompts to measure with: JSON lines, in the shared form or Spec-Bench's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

BUILT_IN = Path(__file__).parent / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt."""

    id: str
    category: str
    prompt: str


def read_workload(path: Path, limit: int | None = None) -> list[Item]:
    """Read prompts.

    Args:
        path: a line each: ``{"id", "category", "prompt"}`` or Spec-Bench's ``{"question_id",
            "category", "turns"}``, of which the first turn counts.
        limit: at most so many, taken from all categories in turn; None: all.

    Raises:
        ValueError: a line that is neither, or no line at all.
    """
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            try:
                items.append(_item(json.loads(line)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(
                    f"{path}, line {number}: need an object with id, category and prompt, or "
                    "question_id, category and turns"
                ) from error
    if not items:
        raise ValueError(f"{path} holds no prompts")
    return items if limit is None else _spread(items)[:limit]


def _item(line: dict[str, Any]) -> Item:
    prompt = line["prompt"] if "prompt" in line else line["turns"][0]
    if not isinstance(prompt, str) or not prompt:
        raise ValueError("no text")
    identity = line["id"] if "id" in line else line["question_id"]
    return Item(str(identity), str(line.get("category", "")), prompt)


def _spread(items: Sequence[Item]) -> list[Item]:
    """The first of every category, then the second of every one, and so on."""
    categories: dict[str, list[Item]] = {}
    for item in items:
        categories.setdefault(item.category, []).append(item)
    rounds = zip_longest(*categories.values())
    return [item for item in chain.from_iterable(rounds) if item is not None]
