"""Prompts to measure with: JSON lines, in the shared form or Spec-Bench's."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from specplug.text_file import decode_text

BUILT_IN = Path(__file__).parent / "prompts.jsonl"


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt."""

    id: str
    category: str
    prompt: str
    answer: str | None = None
    """One that is known."""
    ended: bool = True
    """Whether the answer is whole, not cut at a length."""


def read_workload(path: Path, limit: int | None = None) -> list[Item]:
    """Read prompts.

    Args:
        path: a line each: ``{"prompt"}``, perhaps with ``id``, ``category``, ``answer`` and
            ``finish_reason``, or Spec-Bench's ``{"question_id", "category", "turns"}``, of which
            the first turn counts. Compressed if the name ends in ``.gz``.
        limit: at most so many, taken from all categories in turn; None: all.

    Raises:
        ValueError: a line that is neither, or no line at all.
    """
    items = []
    for number, line in enumerate(_lines(path), 1):
        if line.strip():
            try:
                items.append(_item(json.loads(line), number))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                raise ValueError(
                    f"{path}, line {number}: need an object with prompt, or with question_id, "
                    "category and turns"
                ) from error
    if not items:
        raise ValueError(f"{path} holds no prompts")
    return items if limit is None else _spread(items)[:limit]


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is not what gzip writes, or is cut off: {error}") from error
    return decode_text(content, str(path)).split("\n")


def _item(line: dict[str, Any], number: int) -> Item:
    prompt, answer = line["prompt"] if "prompt" in line else line["turns"][0], line.get("answer")
    if not isinstance(prompt, str) or not prompt or not isinstance(answer, str | None):
        raise ValueError("no text")
    identity = line.get("id", line.get("question_id", number))
    return Item(
        str(identity),
        str(line.get("category", "")),
        prompt,
        answer or None,
        line.get("finish_reason") != "length",
    )


def _spread(items: Sequence[Item]) -> list[Item]:
    """The first of every category, then the second of every one, and so on."""
    categories: dict[str, list[Item]] = {}
    for item in items:
        categories.setdefault(item.category, []).append(item)
    rounds = zip_longest(*categories.values())
    return [item for item in chain.from_iterable(rounds) if item is not None]
