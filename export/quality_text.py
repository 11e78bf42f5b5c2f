"""The text that quality is measured on: the built-in one, or the user's own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np

from specplug.text_file import read_text
from specplug.types import ExportError, Int64Array

FEWEST_TOKENS = 256
"""Of a text of the user's own; with fewer the averages say little."""

_BUILT_IN_TOKENS, _OWN_TOKENS = 640, 2048  # at most; logits of all are kept on disk

Tokenize = Callable[[str], list[int]]


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens to measure on, and the text they come from."""

    tokens: Int64Array  # [n]
    text_sha256: str | None
    """None: arbitrary tokens, for a source without a tokenizer."""


def take_sample(
    tokenize: Tokenize | None, vocab_size: int, longest: int, text: Path | None
) -> Sample:
    """The tokens to measure a model on.

    Args:
        tokenize: the source's tokenizer, if it has one.
        vocab_size: V.
        longest: positions that the model has.
        text: a file of the user's, in UTF-8; None: the built-in text.

    Raises:
        ExportError: the file cannot be read, or is too short.
    """
    if tokenize is None:
        if text is not None:
            raise ExportError(
                f"--quality {text}: the source has no tokenizer to read a text with; "
                "leave it out to measure on arbitrary tokens"
            )
        arbitrary = np.random.default_rng(0).integers(0, vocab_size, size=_BUILT_IN_TOKENS)
        return Sample(arbitrary[:longest], None)
    content = sample_text(text)
    tokens = np.array(tokenize(content), dtype=np.int64)
    if text is not None and len(tokens) < FEWEST_TOKENS:
        raise ExportError(
            f"--quality {text}: {len(tokens)} tokens are too few to judge by; give a text of at "
            f"least {FEWEST_TOKENS} tokens, better {_OWN_TOKENS} (more are not used)"
        )
    most = min(longest, _BUILT_IN_TOKENS if text is None else _OWN_TOKENS)
    return Sample(tokens[:most], hashlib.sha256(content.encode()).hexdigest())


def sample_text(text: Path | None) -> str:
    """The built-in text, or that of the user's file; errors as in :func:`take_sample`."""
    return _built_in() if text is None else _read(text)


def _built_in() -> str:
    return files("specplug.export").joinpath("sample.txt").read_text(encoding="utf-8")


def _read(path: Path) -> str:
    try:
        return read_text(path, "--quality")
    except OSError as error:
        raise ExportError(f"--quality {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ExportError(str(error)) from error
