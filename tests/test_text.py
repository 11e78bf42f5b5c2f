"""Streaming text adds up to the whole, and templates cannot reach out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Tokenizer
from specplug.detokenizer import Detokenizer
from specplug.text import TextStream
from specplug.types import BundleError
from tests_support.tiny import CHAT_TEMPLATE, byte_tokenizer
from tests_support.tokenizer_kinds import KINDS, Kind, made_kind


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return path


TEXTS = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\n\n", "fox", " fox", "é", "狐", "🦊", "\ufffd", "\x00", "12"]
    )
    | st.text(max_size=3),
    max_size=8,
).map("".join)


def sequences(kind: Kind) -> st.SearchStrategy[list[int]]:
    """Token ids of text, and any others: bytes that are no UTF-8, special tokens, padding."""
    of_bytes = [i for i in range(kind.vocab_size) if kind.tokenizer.detokenizer.spell(i)[:1] > b"~"]
    any_id = st.integers(0, kind.vocab_size - 1)
    return st.one_of(
        TEXTS.map(lambda text: kind.backend.encode(text).ids if kind.exact else []),
        st.lists(any_id | st.sampled_from(of_bytes or [0]), max_size=12),
        st.lists(st.one_of(st.sampled_from(of_bytes or [0]), st.just(kind.end_id)), max_size=8),
    )


def pieces(stream: TextStream, tokens: list[int]) -> list[str]:
    return [stream.push(t, last=i == len(tokens) - 1) for i, t in enumerate(tokens)]


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=50)
@given(data=st.data())
def test_streamed_pieces_add_up(name: str, data: st.DataObject) -> None:
    """To what the library makes of all tokens at once, and transformers of the same file."""
    kind = made_kind(name)
    tokens = data.draw(sequences(kind))
    skip = data.draw(st.booleans())
    shown = "".join(pieces(TextStream(kind.tokenizer, skip_special_tokens=skip), tokens))
    assert shown == kind.tokenizer.decode(tokens, skip_special_tokens=skip)
    assert shown == kind.transformers.decode(
        tokens, skip_special_tokens=skip, clean_up_tokenization_spaces=False
    )


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=50)
@given(data=st.data())
def test_an_answer_goes_on_where_the_prompt_ends(name: str, data: st.DataObject) -> None:
    """The prompt's text and the answer's are that of all tokens; echoed, they are its pieces."""
    kind = made_kind(name)
    prompt, answer = data.draw(sequences(kind)), data.draw(sequences(kind).filter(bool))
    skip = data.draw(st.booleans())
    whole = kind.tokenizer.decode([*prompt, *answer], skip_special_tokens=skip)
    echoing = TextStream(kind.tokenizer, shown=prompt, skip_special_tokens=skip)
    echoed = "".join(text for text, *_ in echoing.shown) + "".join(pieces(echoing, answer))
    assert echoed == whole
    stream = TextStream(kind.tokenizer, after=prompt, skip_special_tokens=skip)
    before = kind.tokenizer.decode(prompt, skip_special_tokens=skip)
    shown = "".join(pieces(stream, answer))
    if "\ufffd" not in whole and "\ufffd" not in before:
        assert before + shown == whole
    if kind.name.startswith("byte-level"):  # a character may begin in the prompt
        assert whole.endswith(shown)


@settings(max_examples=50)
@given(data=st.data())
def test_offsets_are_where_tokens_begin(kind: Kind, data: st.DataObject) -> None:
    """However late their text is shown."""
    tokens = kind.backend.encode(data.draw(TEXTS), add_special_tokens=False).ids
    detokenizer = kind.tokenizer.detokenizer
    spell = {i: b"" if detokenizer.is_special(i) else detokenizer.spell(i) for i in tokens}.get
    text = kind.tokenizer.decode(tokens)
    stripped = len(b"".join(map(spell, tokens)).decode()) - len(text)
    stop = data.draw(st.sampled_from([(), ("fox jumps",), ("\n\n", "é狐")]))
    stream = TextStream(kind.tokenizer, stop)
    for index, token in enumerate(tokens):
        stream.push(token)
        if stream.stopped:
            break
        before = b"".join(map(spell, tokens[:index])).decode(errors="ignore")
        assert stream.offset == max(0, len(before) - stripped)


@pytest.mark.parametrize("name", KINDS)
def test_long_texts_are_read_once(name: str) -> None:
    """Each token asks the library for a bounded number of tokens' text."""
    kind = made_kind(name)
    counted = Counted(kind.backend)
    detokenizer = Detokenizer(counted)
    tokens = np.random.default_rng(1).integers(0, kind.vocab_size, 3000).tolist()
    decoding = detokenizer.begin()
    text = "".join(map(decoding.push, tokens)) + decoding.flush()
    assert text == kind.tokenizer.decode(tokens, skip_special_tokens=False)
    assert counted.decoded <= 20 * len(tokens)


class Counted:
    """A tokenizer that counts the tokens it decodes."""

    def __init__(self, backend: Any) -> None:
        self._backend, self.decoded = backend, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def decode(self, tokens: list[int], **options: Any) -> str:
        self.decoded += len(tokens)
        return self._backend.decode(tokens, **options)


def test_half_a_character_is_held_back(path: Path) -> None:
    tokenizer = Tokenizer(path)
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("é!")] == ["", "é", "!"]


def test_byte_tokens_are_shown_when_they_are_certain() -> None:
    """A byte that is none of UTF-8 turns all of its run into replacement characters."""
    tokenizer = made_kind("sentencepiece").tokenizer
    ids = {byte: tokenizer.backend.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    fox = tokenizer.backend.token_to_id("▁fox")
    stream = TextStream(tokenizer)
    assert [stream.push(i) for i in (fox, *map(ids.get, "é".encode()), fox)] == [
        "fox", "", "", "é fox",
    ]  # fmt: skip
    stream = TextStream(tokenizer)
    assert [stream.push(ids[byte]) for byte in b"a\xffb"] == ["", "��", "�"]
    assert stream.push(fox) == " fox"
    stream = TextStream(tokenizer, ["\n\n"])
    assert [stream.push(i) for i in (fox, ids[10], ids[10])] == ["fox", "", ""]
    assert stream.stopped  # at once


def test_without_tokenizer_there_is_no_text() -> None:
    assert TextStream(None).push(3, last=True) == ""


def test_chat_prompt(path: Path) -> None:
    tokenizer = Tokenizer(path, chat_template=CHAT_TEMPLATE)
    expected = "<|user|>hi<|end|><|assistant|>"
    assert tokenizer.render([{"role": "user", "content": "hi"}]) == expected
    ids = tokenizer.encode(expected, special_tokens=False)
    assert tokenizer.encode_prompt("hi") == ids
    assert tokenizer.encode_prompt([{"role": "user", "content": "hi"}]) == ids
    assert tokenizer.encode_prompt("hi", chat=False) == tokenizer.encode("hi")
    with pytest.raises(ValueError, match=r"no chat template: pass text with chat=False"):
        Tokenizer(path).encode_prompt("hi", chat=True)


def test_not_a_tokenizer(tmp_path: Path, path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")
    assert Tokenizer(str(path)).encode("hi") == Tokenizer(path).encode("hi")
    with pytest.raises(BundleError, match="none is not a tokenizer: No such file"):
        Tokenizer(str(tmp_path / "none"))
    for wrong in (
        {"path": 5},
        {"path": path, "chat_template": 5},
        {"path": path, "stop_token_ids": "5"},
    ):
        with pytest.raises(ValueError, match="it must be"):
            Tokenizer(**wrong)
    with pytest.raises(TypeError, match="did you mean 'chat_template'"):
        Tokenizer(path, chat_templat="x")  # type: ignore[call-arg]
