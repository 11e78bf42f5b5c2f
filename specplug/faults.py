"""What is wrong with a file that a schema describes, in a line."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import ValidationError


def first_fault(error: ValidationError) -> str:
    """Where a file is not as its schema says, and how."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where or 'the top'}: {first['msg']}"


def check_tokens(tokens: Iterable[int], vocab_size: int) -> None:
    """Refuse stop tokens that no answer can have.

    Raises:
        ValueError: naming the token.
    """
    for token in tokens:
        if not 0 <= token < vocab_size:
            raise ValueError(f"stop token {token} is not in [0, {vocab_size})")
