"""C++ cuts texts by the expressions of every family as the ``tokenizers`` library does."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, decoders, pre_tokenizers

from specplug.export.gguf_pretokenizers import TYPES, pre_tokenizer
from tests_support.native import BUILD

BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
_END = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
EXPRESSIONS = {
    "cl100k": rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    "o200k": rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CASES}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CASES}?|\p{{N}}{{1,3}}|{_END}",
    "phi-4": rf"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{{L}}\p{{N}}]?+\p{{L}}+|\p{{N}}{{1,3}}|{_END}",
    "kimi": rf"[\p{{Han}}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}&&[^\p{{Han}}]]+|\p{{N}}|{_END}",
    "thousands": r"\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))|\P{N}+",
    "empty matches": "(?=([0-9]{3})+(?![0-9]))",
    "the end": r"\s+\z|[^\n]+|\n",
    "ranges": "[\u4e00-\u9fa5\u3040-\u309f]+"
    r"|[\x{ac00}-\x{d7ff}&&[^\s]]|\u00e9|\x7e|[a-c\-\]]{2,4}|[^a-c]",
    "nested": r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|(a|b){1,4}Z|x{,2}y|z{3}|\D\d",
}  # fmt: skip
"""As files of these families have them, and what else the interpreter knows."""


def split(expression: str, behavior: str = "isolated", *, invert: bool = False) -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(expression), behavior, invert=invert), BYTES]
    )


RULES: dict[str, Any] = {
    **{name: split(expression) for name, expression in EXPRESSIONS.items()},
    "removed": split(r"\s+", "removed"),
    "kept": split(r"\p{L}+", "removed", invert=True),
    "whole": BYTES,
    "digits first": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "digits together": pre_tokenizers.Sequence([pre_tokenizers.Digits(), BYTES]),
    **{name: pre_tokenizer(rule) for rule, name in {t.rule: n for n, t in TYPES.items()}.items()},
}
"""Those of GGUF files, by the last type that has each, and others."""


class Cutter:
    """The program that cuts texts, with the rules it was given."""

    def __init__(self, rules: Mapping[str, Any]) -> None:
        self._process = subprocess.Popen(
            [BUILD / "release" / "tests" / "cut"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        described = [
            rule if isinstance(rule, dict) else json.loads(rule.__getstate__())
            for rule in rules.values()
        ]
        self.errors = dict(zip(rules, self.ask(described), strict=True))

    def ask(self, question: Sequence[Any]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()


def pieces(rule: Any, text: str) -> list[str]:
    """As the library cuts it."""
    letters = decoders.ByteLevel()
    return [letters.decode([piece]) for piece, _ in rule.pre_tokenize_str(text)] if text else []


@pytest.fixture(scope="module")
def cutter(native_build: None) -> Iterator[Cutter]:
    with Cutter(RULES) as made:
        assert not any(made.errors.values()), made.errors
        yield made


PIECES = [
    "'s", "'S", "'\u017f", "'LL", "'re", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "/",
    "\u0085", "12", "1234567", "\u0663", "\u00bd", "word", " Word", "McDONald", "na\u00efve",
    "e\u0301", "\u1112\u1161\u11ab", "\u6f22\u5b57", "\u3042\u30a2", "\ud55c\uae00", "\U00020000",
    "\U0001f600", "\u200d", "\ufffd", "\0", "!?", " ...", "_", "\u0301", "\u01c5", "\u02b0", "abZ",
    "<sentinel:12>", "IMGIMGABZ", "(|)", "    ", "\u0e01", "1,234", "$", "`", "\u2019", "xxy",
    "zzzz",
]  # fmt: skip
TEXT = st.text(max_size=30) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@settings(max_examples=300, deadline=None)
@given(text=TEXT)
def test_texts_are_cut_alike(cutter: Cutter, text: str) -> None:
    for (name, rule), (found,) in zip(RULES.items(), cutter.ask([text]), strict=True):
        assert found == pieces(rule, text), name


def test_properties_are_those_of_every_character(native_build: None) -> None:
    """By each property alone, of all characters at once but for the middle of large blocks."""
    names = ["L", "Lu", "Ll", "Lt", "Lm", "Lo", "N", "Nd", "M", "P", "S", "Han"]
    rules = {name: split(rf"\p{{{name}}}+") for name in names}
    parts = (0, 0x3500), (0x4DB0, 0x4E10), (0x9FF0, 0xAC10), (0xD790, 0xD800), (0xF8F0, 0x1FFFF)
    planes = (0x20000, 0x20010), (0x2A6D0, 0x2A710), (0x2FA00, 0x323B0), (0xE0000, 0xE0200)
    text = "".join(chr(code) for part in parts + planes for code in range(*part))
    with Cutter(rules) as made:
        for (name, rule), (found,) in zip(rules.items(), made.ask([text]), strict=True):
            assert found == pieces(rule, text), name


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        (r"\w+", "\\\\w"),
        (r"a+?", "lazy repeat"),
        (r"(?<=a)b", "group of this kind"),
        (r"(?i)a", "group of this kind"),
        (r"(a)\1", "\\\\1"),
        (r"^a", "'^'"),
        (r"\p{Greek}", "Greek"),
        (r"\xe8", "hexadecimal"),
        (r"[[:alpha:]]", "POSIX"),
        (r"(?i:ss)", "may be one"),
        (r"(?i:\u00e9)", "beyond ASCII"),
        (r"(a*)*", "may be empty"),
        (r"(a", "without an end"),
        (r"a)", "closes nothing"),
        (r"[b-a]", "range"),
        (r"a{3,1}", "'{'"),
        (r"a{100001}", "100000"),
        ("(" * 60 + "a" + ")" * 60, "nested"),
        (r"((((a{9}b){99}){99}){99}){99}", "long"),
    ],
)
def test_what_is_not_known_is_named(native_build: None, expression: str, words: str) -> None:
    rule = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": expression},
                "behavior": "Isolated",
                "invert": False,
            },
            json.loads(BYTES.__getstate__()),
        ],
    }
    with Cutter({"rule": rule}) as made:
        assert words.replace("\\\\", "\\") in made.errors["rule"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"type": "Digits"}, "without ByteLevel"),
        (
            {"type": "Sequence", "pretokenizers": [{"type": "ByteLevel"}, {"type": "Digits"}]},
            "Digits after ByteLevel",
        ),
        ({"type": "ByteLevel", "use_regx": True}, "use_regx"),
        (
            {"type": "Split", "pattern": {"Regex": "a"}, "behavior": "MergedWithNext"},
            "Isolated or Removed",
        ),
        ({"type": "Split", "pattern": {"String": "a"}, "behavior": "Isolated"}, "Regex"),
    ],
)
def test_rules_that_are_not_followed_are_named(
    native_build: None, rule: dict[str, Any], words: str
) -> None:
    with Cutter({"rule": rule}) as made:
        assert words in made.errors["rule"]
