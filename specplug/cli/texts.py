"""Text that a person hands in, or is shown, whatever the terminal's encoding."""

from __future__ import annotations

import json
import os
import sys
from io import TextIOWrapper
from typing import Any, TextIO

from specplug.text_file import decode_text


def prepare_streams() -> None:
    """Have standard streams take any text: an answer is never lost to a terminal's encoding.

    Output shows ``?`` for what its encoding cannot say. Input keeps bytes that its encoding has no
    characters for, so that :func:`check_words` can say which.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def check_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """A command's arguments, of which texts are the UTF-8 that they are, in any locale.

    Python hands over bytes that the locale's encoding has no characters for as half surrogates,
    which no tokenizer takes. Paths stay as they are: their bytes name files.

    Raises:
        ValueError: a text is not UTF-8.
    """
    return {
        name: [_checked(name, each) for each in value]
        if isinstance(value, list)
        else _checked(name, value)
        for name, value in arguments.items()
    }


def _checked(name: str, value: Any) -> Any:
    return check_words(value, name.replace("_", "-")) if isinstance(value, str) else value


def check_words(text: str, what: str) -> str:
    """Text from the terminal as the UTF-8 that it is, whatever the locale took it for.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return decode_text(os.fsencode(text), what)
    return text


def read_input(what: str) -> str:
    """All of standard input; errors as in :func:`decode_text`."""
    return decode_text(sys.stdin.buffer.read(), f"{what} on standard input")


def print_json(value: Any, *, indent: int | None = None) -> None:
    """One JSON object on standard output, in ASCII where the stream's encoding is not Unicode."""
    print(json.dumps(value, indent=indent, ensure_ascii=not _unicode(sys.stdout)))


def _unicode(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")
