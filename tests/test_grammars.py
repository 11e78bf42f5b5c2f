"""Grammars, choices and structural tags take the texts that their makers mean, and no others."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, StructTag

from specplug import (
    ModelDrafter,
    NgramDrafter,
    NoDrafter,
    SamplingParams,
    SpeculativeDecoder,
    Tokenizer,
)
from specplug.engines.fake import FakeEngine
from specplug.gbnf import is_gbnf, lark_of
from specplug.grammar_sources import compile_grammar
from specplug.structural_tags import FORMATS
from tests_support.tiny import byte_tokenizer

ALPHABET = 'ab-]["\\&~^é😀\n\t\x01\x7f'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("grammars") / "tokenizer.json"
    made = byte_tokenizer(("<tool>", "</tool>"))
    made.save(str(path))
    return Tokenizer(path, stop_token_ids=[made.token_to_id("<|end|>")])


def takes(tokenizer: Tokenizer, text: str, **form: Any) -> bool:
    """Whether a whole text, special tokens by their names, fits."""
    grammar, _ = compile_grammar(SamplingParams(**form), tokenizer)
    size = tokenizer.backend.get_vocab_size()
    matcher = LLMatcher(tokenizer.for_grammars(size, tokenizer.stop_token_ids), grammar)
    assert not matcher.is_error(), matcher.get_error()
    tokens = tokenizer.encode(text, special_tokens=False)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def begins(tokenizer: Tokenizer, tokens: list[int], **form: Any) -> bool:
    """Whether tokens are the beginning of a text that fits."""
    grammar, _ = compile_grammar(SamplingParams(**form), tokenizer)
    size = tokenizer.backend.get_vocab_size()
    matcher = LLMatcher(tokenizer.for_grammars(size, tokenizer.stop_token_ids), grammar)
    return bool(matcher.try_consume_tokens(tokens) == len(tokens))


# --- GBNF: Python's expressions say the same --------------------------------------------------


def escaped(character: str, draw: st.DrawFn) -> str:
    ways = [f"\\U{ord(character):08X}"]
    if ord(character) < 0x10000:
        ways.append(f"\\u{ord(character):04x}")
    if ord(character) < 0x100:
        ways.append(f"\\x{ord(character):02x}")
    named = {"\n": "\\n", "\t": "\\t", "\\": "\\\\", '"': '\\"', "[": "\\[", "]": "\\]"}
    ways.append(named.get(character, character))
    return draw(st.sampled_from(ways))


CHARACTERS = st.sampled_from(ALPHABET)


@st.composite
def expressions(draw: st.DrawFn, depth: int = 3) -> tuple[str, str]:
    """A GBNF expression, and Python's."""
    kind = draw(st.sampled_from(["text", "class", "any"] + ["or", "and", "times"] * (depth > 0)))
    if kind == "text":
        text = draw(st.text(CHARACTERS, max_size=3))
        return '"' + "".join(escaped(one, draw) for one in text) + '"', re.escape(text)
    if kind == "class":
        first, last = sorted([draw(CHARACTERS), draw(CHARACTERS)])
        single = draw(CHARACTERS)
        negated = "^" * draw(st.integers(0, 1))
        codes = [f"\\U{ord(one):08X}" for one in (first, last, single)]
        theirs = "[{}{}-{}{}]".format(negated, *codes)
        plain = escaped(single, draw) if single not in "^-]" else codes[2]
        return f"[{negated}{escaped_edge(first)}-{escaped_edge(last)}{plain}]", theirs
    if kind == "any":
        return ".", "(?s:.)"
    if kind == "times":
        ours, theirs = draw(expressions(depth - 1))
        times = draw(st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}"]))
        return f"({ours}){times}", f"(?:{theirs}){times}"
    parts = [draw(expressions(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    between = (" | ", "|") if kind == "or" else (" ", "")
    return (
        f"({between[0].join(ours for ours, _ in parts)})",
        f"(?:{between[1].join(theirs for _, theirs in parts)})",
    )


def escaped_edge(character: str) -> str:
    return f"\\U{ord(character):08X}"


@settings(deadline=None, max_examples=250)
@given(expression=expressions(), texts=st.lists(st.text(CHARACTERS, max_size=6), max_size=6))
def test_gbnf_takes_what_pythons_expressions_take(
    tokenizer: Tokenizer, expression: tuple[str, str], texts: list[str]
) -> None:
    ours, theirs = expression
    for text in texts:
        fits = re.fullmatch(theirs, text) is not None
        assert takes(tokenizer, text, grammar=f"root ::= {ours}") == fits, text


def test_gbnf_is_matched_by_characters_and_not_by_lexemes(tokenizer: Tokenizer) -> None:
    for grammar, fitting in (
        ('root ::= "ab" | "a" "bc"', ["ab", "abc"]),
        ('root ::= ws " x"\nws ::= [ ]*', [" x", "   x"]),
        ('root ::= b B # two rules\nb ::= "x"\nB ::= "y"', ["xy"]),
        ('root  ::=\n  a-b |\n a-b a-b\n\n# more\na-b ::= (\n "x"\n)', ["x", "xx"]),
        ('root ::= "(" root ")" | ""', ["", "(())"]),
    ):  # fmt: skip
        for text in ["", "a", "ab", "abc", " x", "   x", "xy", "x", "xx", "(())", "(()", "b"]:
            assert takes(tokenizer, text, grammar=grammar) == (text in fitting), (grammar, text)


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ('start ::= "a"', "there is no rule root"),
        ("root ::= a", "there is no rule a"),
        ('root ::= "a', 'line 1: " is missing'),
        ('root ::= "a"\nb ::= [z-a]', "line 2: the range z-a is empty"),
        (r'root ::= "\q"', r"unknown escape \\q"),
        (r'root ::= "\ud800"', "is no character"),
        ('root ::= ("a"', r"\) is missing"),
        ('root ::= <think> "a"', "unexpected '<'"),
        ('root ::= "a"\nroot ::= "b"', "rule root is there twice"),
        ("start: nothing", "nothing"),
        ("words", "grammar words"),
    ],
)
def test_wrong_grammars_are_refused(tokenizer: Tokenizer, grammar: str, message: str) -> None:
    made = decoder(1, tokenizer)
    with pytest.raises(ValueError, match=message):
        made.generate([1], sampling=SamplingParams(grammar=grammar))
    assert not made.target.steps


def test_lark_stays_lark(tokenizer: Tokenizer) -> None:
    lark = 'start: "a" | other\nother: /[0-9]+/ "::="'
    assert not is_gbnf(lark)
    assert is_gbnf('  root ::= "a"')
    assert takes(tokenizer, "12::=", grammar=lark)
    assert not takes(tokenizer, "12", grammar=lark)
    assert lark_of('root ::= "a"').splitlines()[0] == "%llguidance {}"


# --- choices ----------------------------------------------------------------------------------


@settings(deadline=None, max_examples=100)
@given(
    texts=st.lists(
        st.text(st.one_of(CHARACTERS, st.characters(codec="utf-8"))), min_size=1, max_size=4
    ),
    other=st.text(CHARACTERS, max_size=4),
)
def test_choices_are_taken_and_nothing_else(
    tokenizer: Tokenizer, texts: list[str], other: str
) -> None:
    for text in [*texts, other]:
        assert takes(tokenizer, text, choice=texts) == (text in texts)


# --- structural tags --------------------------------------------------------------------------

LEGACY = {
    "type": "structural_tag",
    "structures": [
        {"begin": "<f=a>", "schema": {"type": "integer"}, "end": "</f>"},
        {"begin": "<f=bb>", "schema": {"enum": ["x", "y"]}, "end": "</f>"},
    ],
    "triggers": ["<f="],
}
TAGGED = re.compile(r'(?s)((?!<f=).)*(<f=(a>-?(0|[1-9][0-9]*)|bb>("x"|"y"))</f>((?!<f=).)*)*')
PIECES = ["<f=", "<f", "a>", "bb>", "1", '"x"', "x", "</f>", "\n", "12"]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.sampled_from(PIECES), max_size=10).map("".join))
def test_structural_tags_are_llguidances_and_pythons(tokenizer: Tokenizer, text: str) -> None:
    found = takes(tokenizer, text, structural_tag=LEGACY)
    assert found == bool(TAGGED.fullmatch(text))
    tags = [
        StructTag(trigger="<f=", begin=one["begin"], grammar=one["schema"], end=one["end"])
        for one in LEGACY["structures"]
    ]
    assert found == takes(tokenizer, text, grammar=StructTag.to_grammar(tags, assume_special=False))


def test_tags_of_special_tokens_are_those_tokens(tokenizer: Tokenizer) -> None:
    tag = {
        "structures": [{"begin": "<tool>", "schema": {"enum": [1]}, "end": "</tool>"}],
        "triggers": ["<tool>"],
    }
    assert takes(tokenizer, "see <tool>1</tool> and", structural_tag=tag)
    assert not takes(tokenizer, "see <tool>2</tool>", structural_tag=tag)
    assert not takes(tokenizer, "see <tool>1", structural_tag=json.dumps(tag))


FORMS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"type": "const_string", "value": "a<tool>"}, ["a<tool>"], ["a", ""]),
    ({"type": "json_schema", "json_schema": {"type": "boolean"}}, ["true"], ["1"]),
    ({"type": "regex", "pattern": r"a/\/b"}, ["a//b"], ["a/b"]),
    ({"type": "any_text"}, ["", "x\ny"], ["<tool>"]),
    (
        {"type": "sequence", "elements": [
            {"type": "const_string", "value": "x"},
            {"type": "tag", "begin": "<t>", "content": {"type": "any_text"}, "end": "</t>"},
            {"type": "any_text"},
        ]},
        ["x<t></t>", "x<t>a<b</t>rest</t>"], ["x<t>", "<t></t>"],
    ),
    (
        {"type": "or", "elements": [
            {"type": "const_string", "value": "x"}, {"type": "const_string", "value": "yy"},
        ]},
        ["x", "yy"], ["xyy", ""],
    ),
    (
        {"type": "tags_with_separator", "separator": ",", "tags": [
            {"begin": "(", "content": {"type": "regex", "pattern": "[0-9]"}, "end": ")"},
        ]},
        ["", "(1)", "(1),(2)"], ["(1)(2)", "(1),", "x"],
    ),
    (
        {"type": "tags_with_separator", "separator": ",", "at_least_one": True,
         "stop_after_first": True, "tags": [
            {"type": "tag", "begin": "(", "content": {"type": "any_text"}, "end": ")"},
        ]},
        ["(1)", "(a,)"], ["", "(1),(2)"],
    ),
    (
        {"type": "triggered_tags", "triggers": ["<"], "tags": [
            {"begin": "<tool>", "content": {"type": "const_string", "value": "x"}, "end": ""},
        ]} | {"triggers": ["<tool>"]},
        ["", "a <tool>xb"], ["<tool>y"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("form", "fitting", "others"), FORMS)
def test_formats(
    tokenizer: Tokenizer, form: dict[str, Any], fitting: list[str], others: list[str]
) -> None:
    for text in [*fitting, *others]:
        assert takes(tokenizer, text, structural_tag={"format": form}) == (text in fitting), text


def test_every_format_is_tried() -> None:
    def kinds(form: Any) -> set[str]:
        inner = form.values() if isinstance(form, dict) else form if isinstance(form, list) else ()
        own = {form["type"]} if isinstance(form, dict) and "type" in form else set()
        return own.union(*map(kinds, inner))

    assert set(FORMATS) <= kinds([form for form, _, _ in FORMS])


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ({}, "it must have structures and triggers, or format"),
        ({"format": {"type": "qwen_xml_parameter"}}, "'qwen_xml_parameter': it must be one of"),
        ({"format": {"type": "tag", "begin": "x"}}, "format tag needs content"),
        ({"format": {"type": "any_text", "excludes": []}}, "format any_text has no excludes"),
        ({"structures": [{"begin": "a"}], "triggers": ["a"]}, "each must have begin, end, schema"),
        (LEGACY | {"triggers": ["<g"]}, "'<f=a>': it must start with one of the triggers"),
        (LEGACY | {"triggers": []}, "triggers"),
        (LEGACY | {"strict": True}, "it has strict, structures, triggers"),
        ({"format": {"type": "sequence", "elements": [{"type": "any_text"}] * 2}}, "come last"),
        ("[]", "it must be a JSON object"),
        ("{", "structural_tag {"),
    ],
)
def test_wrong_tags_are_refused(tokenizer: Tokenizer, tag: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        takes(tokenizer, "", structural_tag=tag)


# --- while drafting ---------------------------------------------------------------------------


def decoder(seed: int, tokenizer: Tokenizer, drafter: str = "none", k: int = 0) -> Any:
    size = tokenizer.backend.get_vocab_size()

    def engine(of: int) -> FakeEngine:
        return FakeEngine(
            lambda prefix: 3 * np.random.default_rng([of, *prefix[-2:]]).normal(size=size),
            vocab_size=size,
        )

    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(engine(seed + 1)),
        "same": lambda: ModelDrafter(engine(seed)),
    }[drafter]()
    return SpeculativeDecoder(engine(seed), drafter=made, draft_tokens=k, tokenizer=tokenizer)


GRAMMARS: list[dict[str, Any]] = [
    {"grammar": 'root ::= ("ab" | "a" "bc" | "1"){2,6}'},
    {"grammar": 'start: ("yes" | "no") /[0-9]{1,4}/'},
    {"choice": ["abab", "abba", "é1", "1a1a"]},
    {"structural_tag": {"format": FORMS[6][0] | {"at_least_one": True}}},
    {"json_schema": {"type": "array", "items": {"enum": [1, "a"]}, "maxItems": 3}},
]


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    form=st.sampled_from(GRAMMARS),
    temperature=st.sampled_from([0.0, 1.0]),
    ends=st.sampled_from([[], ["1"], ["b", "1"]]),
    ignore_eos=st.booleans(),
    k=st.integers(1, 6),
)
def test_whole_answers_fit_whatever_is_drafted_and_whatever_ends_them(
    tokenizer: Tokenizer,
    seed: int,
    form: dict[str, Any],
    temperature: float,
    ends: list[str],
    ignore_eos: bool,
    k: int,
) -> None:
    stops = [token for one in ends for token in tokenizer.encode(one)]
    options: dict[str, Any] = {
        "sampling": SamplingParams(temperature=temperature, seed=seed, **form),
        "stop_token_ids": stops,
        "ignore_eos": ignore_eos and bool(stops),
        "max_tokens": 80,
    }
    expected = decoder(seed, tokenizer).generate("1ab1ab", **options)
    *answer, last = expected.token_ids
    own = [*tokenizer.stop_token_ids] if not options["ignore_eos"] else []
    stopped = expected.finish_reason == "stop"  # tags with a separator may go on for ever
    assert not stopped or last in [*stops, *own]
    if stopped and last in own:
        assert takes(tokenizer, tokenizer.decode(answer), **form)
    assert begins(tokenizer, answer, **form)
    for drafter in ("ngram", "draft", "same"):
        found = decoder(seed, tokenizer, drafter, k).generate("1ab1ab", **options)
        assert found.token_ids == expected.token_ids, drafter
