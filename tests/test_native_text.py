"""The C++ runtime's tokenizer against the ``tokenizers`` library, on text of every script."""

from __future__ import annotations

import codecs
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from specplug.bundle import Bundle
from specplug.bundle_files import describe_file
from specplug.spelling import in_bytes
from tests_support import native as support
from tests_support.native import Native, NativeError, in_native, in_python
from tests_support.tiny import SPECIAL_TOKENS

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA = QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|", 1)
"""The expressions of Qwen 2 and Llama 3."""


def split(expression: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(expression), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def trained(name: str) -> Tokenizer:
    """A tokenizer as a family has it, of a few hundred merges learnt from this project's pages."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama"))
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.pre_tokenizer = {
        "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
        "prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
        "digits": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        ),
        "qwen": split(QWEN),
        "llama": split(LLAMA),
    }[name]
    if name == "qwen":
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=800,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pages = [path.read_text() for path in sorted((support.ROOT / "docs").glob("*.md"))]
    tokenizer.train_from_iterator(
        [*pages, "Ünïcödé naïve ελληνικά 漢字かな русский " * 50], trainer
    )
    if name == "digits":  # as SmolLM2's, which lacks bytes that were not in its text
        tokenizer = without(tokenizer, "\u0142\u010b")
    tokenizer.add_tokens([AddedToken("plain added", normalized=True)])
    if name == "llama":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<|user|> $A <|end|>",
            special_tokens=[(t, tokenizer.token_to_id(t)) for t in ("<|user|>", "<|end|>")],
        )
    return tokenizer


def without(tokenizer: Tokenizer, letters: str) -> Tokenizer:
    """The tokenizer with an unknown token, and without some bytes' letters."""
    described = json.loads(tokenizer.to_str())
    model = described["model"]
    kept = [token for token in model["vocab"] if not set(token) & set(letters)]
    model["vocab"] = {token: model["vocab"][token] for token in kept}
    model["merges"] = [pair for pair in model["merges"] if not set("".join(pair)) & set(letters)]
    model["unk_token"] = SPECIAL_TOKENS[0]
    return Tokenizer.from_str(json.dumps(described))


def limited(tokenizer: Tokenizer) -> str:
    """``tokenizer.json`` with what its training left there, which changes no token."""
    again = Tokenizer.from_str(tokenizer.to_str())
    again.enable_truncation(8)
    again.enable_padding(length=16)
    again.model.dropout = 0.5
    return again.to_str()


def with_tokenizer(bundle: Path, text: str, copy: Path) -> Path:
    """A copy of a bundle with another ``tokenizer.json``."""
    shutil.copytree(bundle, copy)
    (copy / "tokenizer.json").write_text(text)
    manifest = json.loads((copy / "specplug.json").read_text())
    manifest["tokenizer"]["file"] = describe_file(copy, "tokenizer.json").model_dump()
    (copy / "specplug.json").write_text(json.dumps(manifest))
    return copy


@pytest.fixture(scope="module", params=["gpt2", "prefix", "digits", "qwen", "llama"])
def pair(
    request: pytest.FixtureRequest,
    native_build: None,
    tiny_bundles: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Native, Tokenizer]]:
    tokenizer = trained(request.param)
    copy = tmp_path_factory.mktemp("text") / "bundle"
    with Native(with_tokenizer(tiny_bundles["w8a8"], limited(tokenizer), copy)) as native:
        assert native.info["has_tokenizer"]
        yield native, tokenizer


PIECES = [
    "'s", "'S", "'\u017f", "'LL", "'re", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000",
    "\u0085", "12", "1234567", "\u0663", "\u00bd", "word", " Word", "na\u00efve", "e\u0301",
    "a\u0302\u0323", "\u1112\u1161\u11ab", "\u212b", "\u0958", "\u6f22\u5b57", "\U0001f600",
    "\u200d", "\ufffd", "\0", "!?", " ...", "<|end|>", "<|user|", "plain added", "_", "\u0301",
]  # fmt: skip
TEXT = st.text(max_size=40) | st.lists(st.sampled_from(PIECES), max_size=25).map("".join)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=TEXT, special=st.booleans())
@example(text="", special=True)
def test_text_becomes_the_same_tokens(
    pair: tuple[Native, Tokenizer], text: str, special: bool
) -> None:
    native, tokenizer = pair
    expected = tokenizer.encode(text, add_special_tokens=special).ids
    assert native.ask("encode", text=text, special=special) == expected
    assert native.ask("decode", ids=expected) == tokenizer.decode(expected)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ids=st.lists(st.integers(0, 810), max_size=30))
def test_tokens_become_the_same_text(pair: tuple[Native, Tokenizer], ids: list[int]) -> None:
    """Whatever bytes they are."""
    native, tokenizer = pair
    assert native.ask("decode", ids=ids) == tokenizer.decode(ids)


def test_every_character(pair: tuple[Native, Tokenizer]) -> None:
    """Each alone is enough to be cut, composed or dropped wrongly."""
    native, tokenizer = pair
    codes = [*range(0xD800), *range(0xE000, 0x32000), *range(0xE0000, 0xE0200)]
    for start in range(0, len(codes), 2048):
        text = "".join(f"a{chr(code)} 1{chr(code)}" for code in codes[start : start + 2048])
        assert native.ask("encode", text=text) == tokenizer.encode(text).ids


def test_long_words_take_no_square_of_time(pair: tuple[Native, Tokenizer]) -> None:
    native, tokenizer = pair
    text = "the" * 60_000
    assert native.ask("encode", text=text) == tokenizer.encode(text).ids
    assert native.seconds < 20


def test_other_tokenizers_are_refused(
    native_build: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    """By a status that names what is not known; token ids work all the same."""
    text = json.loads(trained("gpt2").to_str())
    for number, (change, words) in enumerate(
        [
            ({"model": {"type": "Unigram", "vocab": []}}, "BPE"),
            ({"normalizer": {"type": "NFKC"}}, "normalizer"),
            ({"decoder": {"type": "Metaspace"}}, "decoder"),
            ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
            ({"post_processor": {"type": "BertProcessing"}}, "post_processor"),
            ({"model": text["model"] | {"byte_fallback": True}}, "byte_fallback"),
        ]
    ):
        copy = with_tokenizer(tiny_bundle, json.dumps(text | change), tmp_path / str(number))
        with Native(copy) as native:
            assert not native.info["has_tokenizer"]
            with pytest.raises(NativeError, match=words) as caught:
                native.ask("encode", text="a")
            assert caught.value.status == support.UNSUPPORTED
            assert native.ask("generate", prompt=[1, 2], drafter="none", max_tokens=3)["tokens"]
            with pytest.raises(NativeError, match=words):
                native.ask("generate", prompt=[1, 2], drafter="none", text=True)


def test_limits_of_training_are_off(native_build: None, tiny_bundle: Path, tmp_path: Path) -> None:
    """A file's truncation and padding cut and fill no prompt."""
    tokenizer = trained("gpt2")
    text = "one two three " * 40
    whole = tokenizer.encode(text).ids
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=600)
    assert tokenizer.encode(text).ids != whole
    with Native(with_tokenizer(tiny_bundle, tokenizer.to_str(), tmp_path / "copy")) as native:
        assert native.ask("encode", text=text) == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"surprise": 1}, "key 'surprise'"),
        ({"model": {"merge_limit": 3}}, "key 'model.merge_limit'"),
        ({"decoder": {"cleanup": True}}, "key 'decoder.cleanup'"),
    ],
)
def test_keys_that_nobody_reads_are_named(
    native_build: None, tiny_bundle: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    described = json.loads(trained("gpt2").to_str())
    for key, value in change.items():
        old = described.get(key)
        described[key] = old | value if isinstance(value, dict) else value
    copy = with_tokenizer(tiny_bundle, json.dumps(described), tmp_path / "copy")
    with Native(copy) as native, pytest.raises(NativeError, match=words) as caught:
        native.ask("encode", text="a")
    assert caught.value.status == support.UNSUPPORTED


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompt=st.lists(st.integers(0, 259), min_size=1, max_size=4),
    answer=st.lists(st.integers(0, 259), min_size=1, max_size=12),
    ended=st.booleans(),
)
def test_streamed_text_is_the_decoding_of_all_tokens(
    forcing: tuple[Native, Tokenizer], prompt: list[int], answer: list[int], ended: bool
) -> None:
    """Whatever tokens: bytes that are no text, rows without a token, a character begun in the
    prompt; a stop token's own text, special or not, is no part of the answer."""
    native, tokenizer = forcing
    stop = [answer[-1]] if ended else []
    answer = answer[: answer.index(answer[-1]) + 1] if ended else answer
    found = native.ask(
        "generate",
        fresh=True,
        prompt=prompt,
        drafter="none",
        max_tokens=len(answer),
        stop_token_ids=stop,
        text=True,
        forced_tokens=dict(enumerate(answer)),
    )
    assert found["tokens"] == answer
    shown = answer[:-1] if ended else answer
    special = {token for token, one in tokenizer.get_added_tokens_decoder().items() if one.special}

    def spelled(tokens: list[int]) -> bytes:
        names = [tokenizer.id_to_token(token) for token in tokens if token not in special]
        return b"".join(in_bytes(name) for name in names if name)

    before = codecs.getincrementaldecoder("utf-8")("replace")
    before.decode(spelled(prompt))
    assert found["text"] == before.decode(spelled(shown), True)


@pytest.fixture(scope="module")
def forcing(
    native_build: None, tiny_bundles: dict[str, Path]
) -> Iterator[tuple[Native, Tokenizer]]:
    """The bundle whose tokens are bytes; and how they become text."""
    tokenizer = Bundle.open(tiny_bundles["w8a8"]).tokenizer()
    assert tokenizer
    with Native(tiny_bundles["w8a8"], history_tokens=0) as native:
        yield native, tokenizer.backend


def test_text_of_a_generation(native_build: None, tiny_bundle: Path) -> None:
    """Runs' text put together, with and without stop strings, is Python's."""
    with Native(tiny_bundle, load_draft=True, history_tokens=0) as native:
        for seed in range(25):
            request = {"prompt": [40, 41, 42], "drafter": "auto", "draft_tokens": 5, "text": True}
            request |= {"temperature": 1.2, "seed": seed, "max_tokens": 30}
            expected = in_python(tiny_bundle, request)
            assert in_native(native, request) == expected
            if len(expected["text"]) > 12:
                request["stop"] = [expected["text"][6:8], expected["text"][7:10], "never"]
                assert in_native(native, request) == in_python(tiny_bundle, request)


@pytest.mark.weights
def test_real_tokenizer(native_build: None, real_bundle: Path) -> None:
    """SmolLM2's 49,152 tokens, on every page and source file of this project."""
    tokenizer = Bundle.open(real_bundle).tokenizer()
    assert tokenizer
    with Native(real_bundle) as native:
        for path in [*support.ROOT.glob("*.md"), *support.ROOT.glob("*/*.py")]:
            text = path.read_text()
            ids = tokenizer.encode(text)
            assert native.ask("encode", text=text) == ids, path
            assert native.ask("decode", ids=ids) == tokenizer.decode(ids), path
