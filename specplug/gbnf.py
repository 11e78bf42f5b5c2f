"""Grammars of llama.cpp (GBNF) in llguidance's Lark, character by character.

https://github.com/ggml-org/llama.cpp/blob/master/grammars/README.md. A GBNF grammar has no lexer: a
text fits if its characters do. So each character becomes a terminal of its own; a longer terminal
would be matched greedily, and ``"ab" | "a" "bc"`` would not take ``abc``.
"""

from __future__ import annotations

import json
import re

_RULE = re.compile(r"^[ \t]*[\w-]+[ \t]*::=", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REPEATED = re.compile(r"[*+?]|\{[ \t]*\d+[ \t]*(,[ \t]*\d*[ \t]*)?\}")
_ESCAPES = {"t": "\t", "r": "\r", "n": "\n"} | {one: one for one in '\\"[]'}
_CODES = {"x": 2, "u": 4, "U": 8}


def is_gbnf(text: str) -> bool:
    """Whether a grammar is meant as GBNF: its rules have ``::=``."""
    return _RULE.search(text) is not None


def lark_of(text: str) -> str:
    """The Lark grammar of a GBNF grammar.

    Raises:
        ValueError: it is not GBNF, has no ``root``, or names a rule that is not there.
    """
    return _Reader(text).whole()


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._names: dict[str, str] = {"root": "start"}

    def whole(self) -> str:
        rules: dict[str, str] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip()
            self._expect("::=")
            self._skip(lines=True)
            if name in rules:
                raise self._wrong(f"rule {name} is there twice")
            rules[name] = self._alternatives(nested=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                raise self._wrong(f"unexpected {self._text[self._at]!r}")
            self._skip(lines=True)
        for name in self._names:
            if name not in rules:
                raise ValueError(f"there is no rule {name}")
        lines = [
            f"{self._names[name]}: {body}" for name, body in rules.items() if name in self._names
        ]
        return "\n".join(["%llguidance {}", *lines])

    def _alternatives(self, *, nested: bool) -> str:
        found = [self._sequence(nested=nested)]
        while self._next("|"):
            self._skip(lines=True)
            found.append(self._sequence(nested=nested))
        return " | ".join(found)

    def _sequence(self, *, nested: bool) -> str:
        found: list[str] = []
        while self._at < len(self._text):
            one = self._element()
            if one is None:
                break
            self._skip(lines=nested)
            while times := _REPEATED.match(self._text, self._at):
                self._at = times.end()
                self._skip(lines=nested)
                one = f"({one}){''.join(times[0].split())}"
            found.append(one)
        return " ".join(found) or '""'

    def _element(self) -> str | None:
        """A terminal, a rule's name or a group; None: the sequence ends here."""
        if self._next('"'):
            found = ""
            while not self._next('"'):
                found += self._character('"')
            return " ".join(literal(one) for one in found) or '""'
        if self._next("["):
            return self._class()
        if self._next("."):
            return "/(?s:.)/"
        if self._next("("):
            self._skip(lines=True)
            group = self._alternatives(nested=True)
            self._expect(")")
            return f"({group})"
        if _NAME.match(self._text, self._at):
            name = self._name()
            return self._names.setdefault(name, f"rule_{len(self._names)}")
        return None

    def _class(self) -> str:
        negated = self._next("^")
        items = ""
        while not self._next("]"):
            first = self._character("]")
            items += _code(first)
            if self._text.startswith("-", self._at) and not self._text.startswith("-]", self._at):
                self._at += 1
                last = self._character("]")
                if last < first:
                    raise self._wrong(f"the range {first}-{last} is empty")
                items += f"-{_code(last)}"
        if not items:
            raise self._wrong("a class [] without characters")
        return f"/[{'^' if negated else ''}{items}]/"

    def _character(self, closing: str) -> str:
        if self._at >= len(self._text) or self._text[self._at] in "\r\n":
            raise self._wrong(f"{closing} is missing")
        one = self._text[self._at]
        self._at += 1
        if one != "\\":
            return one
        kind = self._text[self._at : self._at + 1]
        self._at += 1
        if kind in _CODES:
            digits = self._text[self._at : self._at + _CODES[kind]]
            self._at += _CODES[kind]
            code = int(digits, 16) if re.fullmatch(f"[0-9a-fA-F]{{{_CODES[kind]}}}", digits) else -1
            if 0 <= code < 0xD800 or 0xE000 <= code <= 0x10FFFF:
                return chr(code)
            raise self._wrong(f"\\{kind}{digits} is no character")
        if kind not in _ESCAPES or not kind:
            raise self._wrong(f"unknown escape \\{kind}")
        return _ESCAPES[kind]

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if not found:
            raise self._wrong("a rule's name is missing")
        self._at = found.end()
        return found[0]

    def _skip(self, *, lines: bool = False) -> None:
        """Skip spaces and comments; ``lines``: ends of lines, too."""
        pattern = r"(?:[ \t]|#[^\r\n]*" + (r"|[\r\n])*" if lines else ")*")
        found = re.compile(pattern).match(self._text, self._at)
        self._at = found.end() if found else self._at

    def _next(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        if found:
            self._at += len(text)
        return found

    def _expect(self, text: str) -> None:
        if not self._next(text):
            raise self._wrong(f"{text} is missing")

    def _wrong(self, what: str) -> ValueError:
        line = self._text.count("\n", 0, self._at) + 1
        return ValueError(f"line {line}: {what}")


def literal(text: str) -> str:
    """A text as a literal of Lark."""
    return json.dumps(text).replace("\x7f", "\\u007f")


def _code(character: str) -> str:
    return f"\\x{{{ord(character):x}}}"
