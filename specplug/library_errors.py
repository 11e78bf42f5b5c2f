"""Errors of libraries: what of them a stranger may read.

A library's words about an input help whoever wrote it; its words about itself (panics, paths of the
machine that built it, addresses) are for the log. A text is trusted if a ``raise`` statement of
specplug made it; the words of a library within it are kept apart from ours, and vetted.
"""

from __future__ import annotations

import logging
import opcode
import re
import traceback
from json import JSONDecodeError

_log = logging.getLogger(__name__)

_RAISE = opcode.opmap["RAISE_VARARGS"]
_LONGEST = 500  # characters of a library's reason
_REDUCED = "the library that reads it failed on it"
_INTERNAL = re.compile(
    r"panic|unwrap\(\)|assert|backtrace|traceback|internal error|unreachable|out of bounds"
    r"|out of range for slice|\.(?:rs|py|pyx|cc|cpp|c|hpp|h|so)\b(?::\d|\W|$)"
    r"|\.cargo|rustc|site-packages"
    r"|/(?:home|root|usr|opt|tmp|var|build|builds|private|Users|github|workspace)/"
    r"|\b0x[0-9a-f]{4,}|\bat line \d+, in |File \"",
    re.IGNORECASE,
)
_PATH = re.compile(r"(?:[A-Za-z]:\\|(?<![\w/:.#'\"])/)[\w.@+-]+[/\\][\w.@+/\\-]+")
_PLACE = re.compile(r"[\w./@+-]+\.(?:rs|pyx?|cc?|cpp):\d+")
_VETTED = (JSONDecodeError, UnicodeError, RecursionError)  # of Python, with fixed words


class LibraryError(ValueError):
    """A library refuses an input, or fails on it.

    Args:
        subject: what it refuses, in our words, such as ``"regex (a"``.
        reason: the library's words.
    """

    def __init__(self, subject: str, reason: str) -> None:
        super().__init__(f"{subject}: {reason}")
        self.subject = subject
        self.reason = reason

    @property
    def public(self) -> str:
        """The text for a stranger: the library's words only if they are about the input."""
        return f"{self.subject}: {self.reason if _is_about_input(self.reason) else _REDUCED}"


def public_text(error: Exception) -> str:
    """What of an error a stranger may read: our own words, a vetted reason, or neither."""
    if isinstance(error, LibraryError):
        public, whole = error.public, str(error)
    else:
        whole = str(error)
        vetted = is_ours(error) or (isinstance(error, _VETTED) and _is_about_input(whole))
        public = whole if vetted else "it cannot be read"
    if public != whole:  # the log names the place alone: the words may hold a part of the prompt
        place = _PLACE.search(whole)
        _log.warning("a library failed on a request, at %s", place[0] if place else _place(error))
    return public


def is_ours(error: BaseException) -> bool:
    """Whether a ``raise`` statement of specplug made an error, and so its text.

    An error of compiled code has its last frame in the code that called it, too; but there the
    instruction is a call.
    """
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", ""))
    if module.partition(".")[0] != "specplug":
        return False
    return trace.tb_frame.f_code.co_code[trace.tb_lasti] == _RAISE


def _place(error: Exception) -> str:
    """File and line of the last frame."""
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust panicked: an exception that ``except Exception`` does not catch."""
    return type(error).__module__ == "pyo3_runtime"


def _is_about_input(reason: str) -> bool:
    return len(reason) <= _LONGEST and not _INTERNAL.search(reason) and not _PATH.search(reason)
