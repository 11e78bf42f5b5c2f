"""Vocabularies of GGUF files against llama.cpp: every pre-tokenizer type, both kinds, all flags.

``tests/data/llama`` holds what llama.cpp gives (``tests/golden/make_llama.py``); where it is
installed, texts that hypothesis makes are compared with it, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.export.gguf_file import read_gguf
from specplug.export.gguf_pretokenizers import REFUSED, TYPES
from specplug.export.gguf_vocabulary import gguf_tokenizer
from specplug.export.tokenizers import SourceTokenizer, spelling
from test_native_text import with_tokenizer
from tests_support import llama
from tests_support.native import Native


def lines(name: str) -> list[Any]:
    return json.loads((llama.REFERENCES / name).read_bytes())


def made(keys: dict[str, Any]) -> tuple[SourceTokenizer, tokenizers.Tokenizer]:
    source = gguf_tokenizer(keys)
    assert source is not None
    return source, tokenizers.Tokenizer.from_str(source.json)


def ids(backend: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [found.ids for found in backend.encode_batch(texts)]


BYTES = llama.byte_level_keys(None)
RULES = {kind.rule: name for name, kind in TYPES.items()}


@pytest.mark.parametrize("name", TYPES)
def test_a_pre_tokenizer_type_cuts_as_llama_cpp(name: str) -> None:
    named, *texts = lines("pre-types.json")
    assert len(texts) == len(llama.TEXTS)
    place = named.index(name)
    _, backend = made(BYTES | {"tokenizer.ggml.pre": name})
    expected = [different[of_type[place]] for different, of_type in texts]
    for text, own, theirs in zip(llama.TEXTS, ids(backend, llama.TEXTS), expected, strict=True):
        assert own == theirs, text


def test_the_cpp_runtime_cuts_as_llama_cpp(
    native_build: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    del native_build
    named, *texts = lines("pre-types.json")
    for name in RULES.values():
        source, _ = made(
            BYTES | {"tokenizer.ggml.pre": name, "tokenizer.ggml.add_bos_token": False}
        )
        with Native(with_tokenizer(tiny_bundle, source.json, tmp_path / name)) as native:
            for text, (different, of_type) in zip(llama.TEXTS, texts, strict=True):
                own = native.ask("encode", text=text)
                expected = different[of_type[named.index(name)]]
                begins = [BYTES["tokenizer.ggml.bos_token_id"]] if TYPES[name].add_bos else []
                assert begins + own == expected, (name, text)


def test_the_texts_tell_the_types_apart() -> None:
    """Types of one rule only have the same tokens for all texts."""
    named, *texts = lines("pre-types.json")
    found: dict[tuple[int, ...], set[tuple[str, ...]]] = {}
    for place, name in enumerate(named):
        found.setdefault(tuple(of[place] for _, of in texts), set()).add(TYPES[name].rule)
    same = sorted(sorted(rules) for rules in found.values() if len(rules) > 1)
    assert same == [sorted({TYPES["bailingmoe"].rule, TYPES["qwen2"].rule})]  # written otherwise


def test_a_missing_type_is_the_default_one() -> None:
    assert made(BYTES)[0] == made(BYTES | {"tokenizer.ggml.pre": "default"})[0]


@pytest.mark.parametrize("name", llama.vocabularies())
def test_a_vocabulary_is_llama_cpps(name: str, tmp_path: Path) -> None:
    """Tokens with the beginning and the end, what ends an answer, and the text of each token."""
    (found,) = [line for line in lines("vocabularies.json") if line[0] == name]
    _, ends, pieces, expected = found
    llama.write_file(tmp_path / "v.gguf", llama.vocabularies()[name])
    keys = read_gguf(tmp_path / "v.gguf").metadata
    source, backend = made(keys)
    texts = [*llama.TEXTS, *llama.SPECIAL_TEXTS]
    for text, own, theirs in zip(texts, ids(backend, texts), expected, strict=True):
        assert own == theirs, text
    assert list(source.stop_token_ids) == ends
    assert llama.digest(own_pieces(source, len(keys["tokenizer.ggml.tokens"]))) == pieces


def own_pieces(source: SourceTokenizer, count: int) -> list[bytes]:
    """The text of each token in the middle of an answer; none for special ones."""
    spelt = spelling(source)
    return [b"" if spelt.is_special(n) else spelt[n] or b"" for n in range(count)]


PARTS = [
    *("'s", "'LL", "  ", "\n\n", " \n", "123", "0", "Ab", "aB", " x", "\r\n", "...", " '", "\x0b"),
    *"\u6f22\u0301\u00e9\u3000\u00b2\u0e01\ud55c\u2028\x85\u0967",
]
MIXED = st.lists(st.sampled_from(PARTS) | st.sampled_from("".join(llama.TEXTS)), max_size=12)
BATCHES = st.lists(MIXED.map("".join), min_size=40, max_size=40)


@pytest.fixture(scope="module")
def ask() -> Iterator[llama.Ask]:
    if not llama.is_there():
        pytest.skip(llama.HOW)
    with llama.judge() as asked:
        yield asked


@pytest.mark.parametrize("name", RULES.values())
def test_any_text_is_cut_as_llama_cpp_cuts_it(name: str, ask: llama.Ask, tmp_path: Path) -> None:
    keys = BYTES | {"tokenizer.ggml.pre": name}
    llama.write_file(tmp_path / "v.gguf", keys)
    check_live(keys, tmp_path / "v.gguf", ask)


@pytest.mark.parametrize("name", [name for name in llama.vocabularies() if "pieces" in name])
def test_any_text_is_in_llama_cpps_pieces(name: str, ask: llama.Ask, tmp_path: Path) -> None:
    keys = llama.vocabularies()[name]
    llama.write_file(tmp_path / "v.gguf", keys)
    check_live(keys, tmp_path / "v.gguf", ask)


def check_live(keys: dict[str, Any], path: Path, ask: llama.Ask) -> None:
    backend = made(keys)[1]

    @settings(max_examples=2, database=None)
    @given(BATCHES)
    def check(texts: list[str]) -> None:
        theirs = ask({"path": str(path), "texts": texts, "special": True})["tokens"]
        for text, own, other in zip(texts, ids(backend, texts), theirs, strict=True):
            assert own == other, text

    check()


def test_types_that_are_not_read_are_refused_by_name() -> None:
    for name in (*REFUSED, "gpt-5", "SMOLLM"):
        with pytest.raises(ValueError, match=f"pre-tokenizer '{name}' is not (known|supported): "):
            gguf_tokenizer(BYTES | {"tokenizer.ggml.pre": name})


def test_live_llama_cpp_knows_the_types_that_are_refused(ask: llama.Ask, tmp_path: Path) -> None:
    for name, known in [*((name, True) for name in REFUSED), ("gpt-5", False)]:
        llama.write_file(tmp_path / "v.gguf", BYTES | {"tokenizer.ggml.pre": name})
        answer = ask({"path": str(tmp_path / "v.gguf"), "texts": ["a"], "special": False})
        assert ("error" not in answer) == known, name


TOKENS, KINDS, SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))
PIECES = llama.pieces_keys()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (BYTES | {"tokenizer.ggml.model": "t5"}, "'t5', a unigram vocabulary, is not supported"),
        (BYTES | {"tokenizer.ggml.model": "new"}, "tokenizer.ggml.model 'new' is not supported"),
        (
            BYTES | {"tokenizer.ggml.merges": ["a \u00bd"]},
            "has 'a' '\u00bd', and 'a\u00bd' is no token",
        ),
        (BYTES | {"tokenizer.ggml.merges": []}, "tokenizer.ggml.merges is missing"),
        (BYTES | {TOKENS: []}, "tokenizer.ggml.tokens is missing"),
        (BYTES | {KINDS: [1, 1]}, r"token_type has 2 for \d+ tokens"),
        (BYTES | {TOKENS: [*BYTES[TOKENS][:-1], "a"]}, r"tokens \d+ and \d+ are both 'a'"),
        (BYTES | {"tokenizer.ggml.eos_token_id": 9999}, "eos_token_id is 9999, and there are"),
        (
            {key: value for key, value in BYTES.items() if "bos" not in key}
            | {"tokenizer.ggml.add_bos_token": True},
            "add_bos_token is set, and tokenizer.ggml.bos_token_id is missing",
        ),
        (
            llama.with_tokens(BYTES, {"\u00e9\u00e9": 4}),
            r"user-defined token \d+, '\u00e9\u00e9'",
        ),
        (PIECES | {SCORES: [0.0]}, "tokenizer.ggml.scores has 1 for"),
        (PIECES | {SCORES: [-1000.0] * len(PIECES[TOKENS])}, "the score -1000: what is merged"),
        (
            PIECES | {TOKENS: [t if t != "<0x41>" else "<A>" for t in PIECES[TOKENS]]},
            "no token for the byte <0x41>",
        ),
        (
            llama.with_tokens(PIECES, {"a\u6f22": 1}),
            "token 'a\u6f22' has '\u6f22', which is no token itself",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_read_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gguf_tokenizer(keys)


def test_a_file_without_a_vocabulary_has_no_tokenizer() -> None:
    assert gguf_tokenizer({}) is None
    assert gguf_tokenizer({"tokenizer.ggml.model": "none"}) is None


def test_roles_out_of_range() -> None:
    """Converters write that there is none as -1, and a padding token that there is not."""
    none = {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF}
    assert made(BYTES | none)[0].stop_token_ids == made(BYTES)[0].stop_token_ids
    assert made(PIECES | none)[0].stop_token_ids == (2,)
    more = {"tokenizer.ggml.padding_token_id": len(PIECES[TOKENS])}
    assert made(PIECES | more)[0] == made(PIECES)[0]


def test_live_llama_cpp_reads_roles_out_of_range_so(ask: llama.Ask, tmp_path: Path) -> None:
    keys = PIECES | {"tokenizer.ggml.eos_token_id": 0xFFFFFFFF}
    llama.write_file(tmp_path / "v.gguf", keys)
    answer = ask({"path": str(tmp_path / "v.gguf"), "texts": [" a"], "special": True})
    assert answer["ends"] == [*made(keys)[0].stop_token_ids]
    assert answer["tokens"] == ids(made(keys)[1], [" a"])
