"""The texts that tokenizers are compared on, and the JSON files that describe them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from specplug.export import folders

TEXTS: Sequence[str] = (
    "Hello world",
    " a space before",
    "two  and   three    spaces ",
    "   \t tabs\t\tand\n\nlines\r\n",
    "Steps:\n\n1. Boil 12345 eggs\n2. 3.14159, 1,000,000",
    "don't I'LL we've THEY'RE",
    "größere Füchse übersprangen",
    "naïve café e\u0301 \ufb01 \u212b ① ²",
    "日本語と中文、한국어 عربى עברית हिन्दी ไทย",
    "🦊🐶 👩‍👩‍👧‍👦 🇩🇪",
    "\u00a0\u200b\u2028\ufeff\u3000",
    "def f(x):\n    return x**2  # square\n\n\n\tpass",
    "<|user|> <s> </s> [INST] <|im_start|> <unk>",
    "https://example.com/a?b=c&d=%20",
    "\x00\x01\x7f",
    "a" * 300,
    "word " * 120,
    "\U0010ffff\ue000",
    "▁lower ▁block",
    "",
)
"""Texts that tokenizers are compared on: all scripts, spaces, controls, and one that is long."""

LONG_TEXT = "one 2 " * 10_000
"""A text that is longer than any length that tokenizers are trained with."""


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds; empty if there is no file.

    Raises:
        ExportError: it is no JSON, or no object.
    """
    return folders.read_json(path) if path.is_file() else {}


def first_line(error: BaseException) -> str:
    """What an error says, on one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
