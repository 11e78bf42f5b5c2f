"""Streaming text adds up to the whole, and templates cannot reach out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug import Tokenizer
from specplug.text import TextStream
from specplug.types import BundleError
from tests_support.tiny import CHAT_TEMPLATE, byte_tokenizer


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return path


@given(st.data())
def test_streamed_pieces_add_up(path: Path, data: st.DataObject) -> None:
    tokenizer = Tokenizer(path)
    text = data.draw(st.text(max_size=20))
    noise = st.lists(st.integers(0, 259), max_size=12)  # broken UTF-8 and special tokens too
    tokens = data.draw(st.one_of(st.just(tokenizer.encode(text)), noise))
    stream = TextStream(tokenizer)
    pieces = [stream.push(t, last=i == len(tokens) - 1) for i, t in enumerate(tokens)]
    assert "".join(pieces) == tokenizer.decode(tokens)


def test_half_a_character_is_held_back(path: Path) -> None:
    tokenizer = Tokenizer(path)
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in tokenizer.encode("é!")] == ["", "é", "!"]


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


def test_not_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json is not a tokenizer"):
        Tokenizer(tmp_path / "tokenizer.json")
