"""Text in a user's files: UTF-8, or an error that names the file."""

from __future__ import annotations

from pathlib import Path


def decode_text(content: bytes, what: str) -> str:
    """The text of a user's bytes, without a byte order mark.

    Args:
        content: UTF-8.
        what: what errors call it.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} is not UTF-8: byte {error.start} is 0x{content[error.start]:02x}: "
            "convert it, as iconv does"
        ) from None


def read_text(path: Path, what: str) -> str:
    """The text of a file; errors as in :func:`decode_text`, and OSError.

    Args:
        path: the file's.
        what: what names it, such as an option, for errors.
    """
    return decode_text(path.read_bytes(), f"{what} {path}")
