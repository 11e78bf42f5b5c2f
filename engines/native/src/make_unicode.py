"""Write the tables of unicode.cpp: what characters are to the ``tokenizers`` library.

The tables are asked of the library itself, so that both know the same version of Unicode. Run this
file with the Python of .venv after raising the library's pin.
"""

from __future__ import annotations

import itertools
import sys
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

CHARACTERS = [*range(0xD800), *range(0xE000, sys.maxunicode + 1)]
HANGUL = range(0xAC00, 0xAC00 + 11172)  # composed by arithmetic
FOLDER = Path(__file__).parent

CLASSES = {
    "kLetters": r"\p{L}",
    "kNumbers": r"\p{N}",
    "kSpaces": r"\s",
    "kUpper": r"\p{Lu}",
    "kLower": r"\p{Ll}",
    "kTitle": r"\p{Lt}",
    "kModifiers": r"\p{Lm}",
    "kCaseless": r"\p{Lo}",
    "kDigits": r"\p{Nd}",
    "kMarks": r"\p{M}",
    "kPunctuation": r"\p{P}",
    "kSymbols": r"\p{S}",
    "kHan": r"\p{Han}",
}

nfc = normalizers.NFC().normalize_str
nfd = normalizers.NFD().normalize_str


def main() -> None:
    """Write both files beside this one."""
    classes = {name: ranges(matching(pattern)) for name, pattern in CLASSES.items()}
    write("unicode_classes.inc", {f"Range {n}": [*map(braced, r)] for n, r in classes.items()})
    decomposed = {c: nfd(chr(c)) for c in CHARACTERS if c not in HANGUL and nfd(chr(c)) != chr(c)}
    pairs = []
    for code in decomposed:
        composes = nfc(chr(code)) == chr(code)
        first, second = canonical_pair(decomposed[code], decomposed)
        pairs.append((code, first, second if composes else -second or -1))
    combining = combining_classes()
    grouped = [
        (group[0], group[-1], combining[group[0]])
        for group in runs(sorted(combining), lambda a, b: combining[a] == combining[b])
    ]
    write(
        "unicode_forms.inc",
        {
            "Decomposition kDecompositions": [*map(braced, pairs)],
            "Combining kCombining": [*map(braced, grouped)],
        },
    )


def matching(pattern: str) -> list[int]:
    """The characters that are wholly of a pattern."""
    split = pre_tokenizers.Split(Regex(pattern), "removed")
    return [code for code in CHARACTERS if not split.pre_tokenize_str(chr(code))]


def canonical_pair(text: str, decomposed: dict[int, str]) -> tuple[int, int]:
    """A decomposition as one of at most two characters, the first perhaps one that decomposes."""
    if len(text) == 1:
        return ord(text), 0
    head, last = text[:-1], text[-1]
    if len(head) == 1:
        return ord(head), ord(last)
    composed = nfc(head)
    if len(composed) == 1:
        return ord(composed), ord(last)
    return next(code for code, form in decomposed.items() if form == head), ord(last)


def combining_classes() -> dict[int, int]:
    """Of every character that has one, by what the library swaps."""
    known = {c: unicodedata.combining(chr(c)) for c in CHARACTERS}
    marks = {
        value: chr(code) for code, value in known.items() if value and nfd(chr(code)) == chr(code)
    }
    found = {}
    last = marks[max(marks)]
    for code in CHARACTERS:
        if unicodedata.category(chr(code)) != "Cn":
            if known[code]:
                found[code] = known[code]
        elif nfd(last + chr(code)) != last + chr(code):  # newer than this Python
            found[code] = min(v for v in marks if nfd(marks[v] + chr(code)) == marks[v] + chr(code))
    return found


def runs(
    codes: list[int], same: Callable[[int, int], bool] = lambda a, b: True
) -> Iterator[list[int]]:
    """Neighbours of one kind together."""
    run = codes[:1]
    for before, code in itertools.pairwise(codes):
        if code == before + 1 and same(before, code):
            run.append(code)
        else:
            yield run
            run = [code]
    yield run


def ranges(codes: list[int]) -> list[tuple[int, int]]:
    """First and last of each run."""
    return [(run[0], run[-1]) for run in runs(codes)]


def braced(numbers: tuple[int, ...]) -> str:
    """As C++ initializes a struct."""
    return "{" + ",".join(map(str, numbers)) + "}"


def write(name: str, tables: dict[str, list[str]]) -> None:
    """Arrays by their declarations."""
    lines = ["// Written by make_unicode.py."]
    for declaration, entries in tables.items():
        lines += [f"constexpr {declaration}[] = {{"]
        lines += wrapped(entries)
        lines += ["};"]
    (FOLDER / name).write_text("\n".join(lines) + "\n")


def wrapped(entries: list[str], width: int = 180) -> list[str]:
    """Lines of entries."""
    lines = [""]
    for entry in entries:
        if len(lines[-1]) + len(entry) > width:
            lines.append("")
        lines[-1] += entry + ","
    return lines


if __name__ == "__main__":
    main()
