"""Structured output: what comes out fits, whatever is drafted; what cannot fit is refused."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import (
    MissingExtraError,
    ModelDrafter,
    NgramDrafter,
    NoDrafter,
    SamplingParams,
    SpeculativeDecoder,
    Tokenizer,
)
from specplug.engines.fake import FakeEngine
from tests_support.tiny import byte_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "kind": {"enum": ["cat", "dog"]},
        "legs": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}
EXPRESSIONS = [r"[0-9]{1,3}-(yes|no)", r"(ab|cd){2,4}", r"x?y{3}", r"[a-cé]{5}"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("structured") / "tokenizer.json"
    made = byte_tokenizer()
    made.save(str(path))
    return Tokenizer(path, stop_token_ids=[made.token_to_id("<|end|>")])


def engine(seed: int, tokenizer: Tokenizer) -> FakeEngine:
    """Random rows, over a few more ids than there are tokens, as padded vocabularies have."""
    size = tokenizer.backend.get_vocab_size() + 12

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        return 3 * np.random.default_rng([seed, *prefix[-2:]]).normal(size=size)

    return FakeEngine(row, vocab_size=size)


def decoder(seed: int, tokenizer: Tokenizer, drafter: str = "none", k: int = 0):
    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(engine(seed + 1, tokenizer)),
        "same": lambda: ModelDrafter(engine(seed, tokenizer)),
    }[drafter]()
    target = engine(seed, tokenizer)
    return SpeculativeDecoder(target, drafter=made, draft_tokens=k, tokenizer=tokenizer)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 1000),
    how=st.one_of(st.just({"json_schema": SCHEMA}), st.sampled_from(EXPRESSIONS).map(
        lambda expression: {"regex": expression}
    )),
    temperature=st.sampled_from([0.0, 1.0]),
    k=st.integers(1, 6),
)  # fmt: skip
def test_the_answer_fits_and_is_the_same_for_every_drafter(
    tokenizer: Tokenizer, seed: int, how: dict, temperature: float, k: int
) -> None:
    params = SamplingParams(temperature=temperature, seed=seed, **how)
    prompt = tokenizer.encode('{"name":"ab","kind":"cat"}')
    expected = decoder(seed, tokenizer).generate(prompt, sampling=params)
    assert expected.finish_reason == "stop"
    if "regex" in how:
        assert re.fullmatch(how["regex"], expected.text)
    else:
        answer = json.loads(expected.text)
        assert list(answer) == ["name", "kind", "legs"]
        assert len(answer["name"]) <= 5
        assert answer["kind"] in ("cat", "dog")
        assert 0 <= answer["legs"] <= 99
    for drafter in ("ngram", "draft", "same"):
        found = decoder(seed, tokenizer, drafter, k).generate(prompt, sampling=params)
        assert found.token_ids == expected.token_ids, drafter
        if drafter == "same":  # the draft is masked like the target
            stats = found.stats  # the last round may have drafted beyond the end
            assert stats.accepted_per_round[:-1] == stats.drafted_per_round[:-1]


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
@pytest.mark.parametrize("drafter", ["ngram", "draft", "same"])
def test_the_other_rules_fit_too(tokenizer: Tokenizer, acceptance: str, drafter: str) -> None:
    for seed in range(5):
        params = SamplingParams(
            temperature=1, seed=seed, regex=EXPRESSIONS[0], acceptance=acceptance
        )
        made = decoder(seed, tokenizer, drafter, 4)
        assert re.fullmatch(EXPRESSIONS[0], made.generate("1-yes 2-yes", sampling=params).text)


def test_bans_hold_within_the_grammar(tokenizer: Tokenizer) -> None:
    banned = tokenizer.encode("yb")
    for expression, expected in ((r"x|y", "x"), (r"a|b|c", "[ac]")):
        params = SamplingParams(regex=expression, banned_tokens=banned)
        assert re.fullmatch(expected, decoder(3, tokenizer).generate("go", sampling=params).text)
    with pytest.raises(ValueError, match="no token is left"):
        decoder(3, tokenizer).generate(
            "go", sampling=SamplingParams(regex="y", banned_tokens=banned)
        )


ENDLESS: dict[str, Any] = {}
ENDLESS["properties"] = ENDLESS


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"json_schema": {"enum": []}}, r'json_schema \{"enum": \[\]\}: Unsatisfiable'),
        ({"json_schema": False}, "json_schema false: Unsatisfiable"),
        (
            {"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}},
            r"minimum \(5\) is greater than maximum \(3\)",
        ),
        ({"json_schema": "{"}, "is not JSON"),
        (
            {"json_schema": '{"type": "string", "type": "null"}'},
            ": the field 'type' is there twice",
        ),
        (
            {"structural_tag": '{"format": {"type": "any_text", "type": "regex"}}'},
            ": the field 'type' is there twice",
        ),
        ({"json_schema": {"enum": {1, 2}}}, "is not JSON"),
        ({"json_schema": {"enum": [b"1"]}}, "is not JSON"),
        ({"json_schema": {"properties": {(1, 2): {}}}}, "is not JSON"),
        ({"json_schema": ENDLESS}, "is not JSON"),
        ({"json_schema": "[" * 100_000}, "is not JSON"),
        (
            {"structural_tag": {"format": {"type": "json_schema", "json_schema": {"enum": {1}}}}},
            "is not JSON",
        ),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"type": "array", "contains": True}}, "Unimplemented"),
        ({"regex": "("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": "\n["}, r"regex \[: unclosed character class"),
        ({"json_schema": {"type": "string", "pattern": "["}}, "unclosed character class"),
        ({"grammar": "!!!"}, "lexer error"),
        ({"grammar": "start: foo\n"}, 'unknown name: "foo"'),
        ({"regex": r"a[^\s\S]"}, "nothing satisfies it"),
    ],
)
def test_what_cannot_be_satisfied_is_refused_before_any_work(
    tokenizer: Tokenizer, how: dict, message: str
) -> None:
    made = decoder(1, tokenizer)
    with pytest.raises(ValueError, match=message) as refused:
        made.generate("hello", sampling=SamplingParams(**how))
    assert "\n" not in str(refused.value)
    assert not made.target.steps


def test_what_it_needs(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="exclude one another"):
        SamplingParams(json_schema=True, regex="x")
    params = SamplingParams(regex="x")
    bare = SpeculativeDecoder(engine(1, tokenizer))
    with pytest.raises(ValueError, match="no tokenizer"):
        bare.generate([1], sampling=params)
    endless = SpeculativeDecoder(engine(1, tokenizer), tokenizer=tokenizer, stop_token_ids=[])
    with pytest.raises(ValueError, match="no stop token"):
        endless.generate([1], sampling=params)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'specplug\[structured\]'"):
        decoder(1, tokenizer).generate([1], sampling=params)


def test_on_a_bundle(tiny_bundles: dict[str, Path]) -> None:
    params = SamplingParams(json_schema=SCHEMA, temperature=0.7, seed=3)
    texts = set()
    for drafter in ("none", "ngram", "draft"):
        with SpeculativeDecoder.from_bundle(tiny_bundles["fp32"], drafter=drafter) as made:
            texts.add(made.generate("a cat", sampling=params).text)
    assert len(texts) == 1
    assert json.loads(texts.pop())["kind"] in ("cat", "dog")
