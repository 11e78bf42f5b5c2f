"""Tokens as bytes, and a target's context in a draft's tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import translation
from specplug.spelling import Spelling, unfinished
from specplug.translation import Reader, Translation
from tests_support.made_tokenizers import (
    END,
    TEXT,
    USER,
    byte_level,
    sentencepiece,
    spelling_of,
    words,
)

LONG_WORDS = ["fox", " foxes", " quick", "\n\n", " größer", " 🦊", "狐が", " over", END, USER, "12"]
KINDS = {
    "byte-level": byte_level(120),
    "larger": byte_level(400),
    "other specials": byte_level(60, ("<|stop|>",)),
    "sentencepiece": sentencepiece(300),
}
texts = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(LONG_WORDS), max_size=60).map("".join)
)


def spelling(kind: str) -> Spelling:
    end = "<|stop|>" if kind == "other specials" else END
    return spelling_of(KINDS[kind], end)


def between(target: str, draft: str) -> Translation:
    sizes = (KINDS[kind].get_vocab_size() for kind in (target, draft))
    return Translation(
        spelling(target), spelling(draft), target_size=next(sizes), draft_size=next(sizes)
    )


def joined(found: Spelling, tokens: Sequence[int]) -> bytes:
    return b"".join(found[token] or b"?" for token in tokens)


@given(text=st.text(), cut=st.integers(0, 40))
def test_unfinished_characters(text: str, cut: int) -> None:
    part = text.encode()[:cut]
    whole = part[: len(part) - unfinished(part)]
    assert whole.decode() == text[: len(whole.decode())]
    assert len(part) == len(text.encode()) or len(whole.decode()) + 1 > len(
        part.decode("utf-8", "ignore")
    )
    assert whole == part.decode("utf-8", "ignore").encode()


@given(content=st.binary(max_size=8))
def test_bytes_that_are_no_text(content: bytes) -> None:
    assert 0 <= unfinished(content) <= min(3, len(content))


@settings(deadline=None)
@given(text=texts, cut=st.integers(0, 8), kind=st.sampled_from([*KINDS]))
def test_tokens_are_the_bytes_of_their_text(text: str, cut: int, kind: str) -> None:
    """Also where a text ends inside a character."""
    content = text.encode()[: max(len(text.encode()) - cut, 0)]
    found = spelling(kind)
    tokens = found.encode(content)
    assert tokens is not None
    its = joined(found, tokens)
    if kind == "sentencepiece":  # which puts a space before every text between special tokens
        its, content = its.replace(b" ", b""), content.replace(b" ", b"")
    assert its == content


def test_what_a_token_is() -> None:
    found = spelling("byte-level")
    end = KINDS["byte-level"].token_to_id(END)
    assert found[end] == END.encode()
    assert found.is_special(end)
    assert found[KINDS["byte-level"].get_vocab_size()] is None
    assert found.special(END) == end
    assert found.special("fox") is None
    named = sentencepiece(300).token_to_id("<0x0A>")
    assert spelling("sentencepiece")[named] == b"\n"
    assert spelling_of(byte_level(9, begin="<|begin|>")).beginning == (
        byte_level(9, begin="<|begin|>").token_to_id("<|begin|>"),
    )
    with pytest.raises(ValueError, match="its decoder is missing, and only tokens of byte-level"):
        spelling_of(words())


@pytest.mark.parametrize("target", KINDS)
@pytest.mark.parametrize("draft", KINDS)
def test_shared_tokens_mean_the_same(target: str, draft: str) -> None:
    found = between(target, draft)
    ours, theirs = (ids.tolist() for ids in found.shared)
    assert ours == sorted(set(ours))
    named = {b"<|stop|>", END.encode()}  # which differ, and have one role
    for one, other in zip(ours, theirs, strict=True):
        meaning = found.target[one], found.draft[other]
        assert meaning[0] == meaning[1] or {*meaning} == named
        assert found.target.is_special(one) == found.draft.is_special(other)
    if target == draft and target != "sentencepiece":
        assert ours == theirs == list(range(KINDS[target].get_vocab_size()))
    small = Translation(found.target, found.draft, target_size=70, draft_size=80).shared
    pairs = set(zip(ours, theirs, strict=True))
    assert {*zip(*(ids.tolist() for ids in small), strict=True)} == {
        (one, other) for one, other in pairs if one < 70 and other < 80
    }


def test_special_tokens_go_by_content_then_by_role() -> None:
    found = between("byte-level", "other specials")
    end, user = (KINDS["byte-level"].token_to_id(token) for token in (END, USER))
    assert found.for_draft(end) == b"<|stop|>"
    assert found.for_draft(user) == USER.encode()  # read as text
    stop = KINDS["other specials"].token_to_id("<|stop|>")
    assert found.for_target(stop) == END.encode()
    assert found.for_target(10_000) is None
    back = between("other specials", "byte-level")
    assert back.for_target(user) is None  # no token of the target, and no text that it means
    assert between("larger", "byte-level").for_target(user) == USER.encode()


def test_agreement() -> None:
    assert between("larger", "larger").agreement(TEXT) == 1
    apart = between("larger", "byte-level").agreement(TEXT)
    assert 0 < apart < 0.9
    assert (
        Translation(spelling("larger"), spelling("larger"), target_size=9, draft_size=9).agreement(
            ""
        )
        == 0
    )


# --- the context in the draft's tokens --------------------------------------------------------


def fed(found: Translation, text: str, sizes: Sequence[int]) -> Reader:
    """A reader that was given a text in pieces."""
    tokens = found.target.encode(text.encode())
    assert tokens is not None
    reader, at, turn = Reader(found), 0, 0
    while at < len(tokens):
        size = sizes[turn % len(sizes)]
        reader.read(tokens[at : at + size])
        at, turn = at + size, turn + 1
    return reader


@settings(deadline=None, max_examples=200)
@given(
    text=st.lists(st.sampled_from(LONG_WORDS), min_size=1, max_size=120).map("".join),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    target=st.sampled_from([*KINDS]),
    draft=st.sampled_from(["byte-level", "larger", "other specials"]),
)
def test_what_is_settled_is_what_the_whole_would_be(
    text: str, sizes: list[int], target: str, draft: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "_KEPT", 6)
        found = between(target, draft)
        reader = fed(found, text, sizes)
        tokens = reader.open()
    assert tokens is not None
    assert [*reader.settled, *tokens] == found.draft.encode(bytes(reader.text))
    if len(reader._pieces) < len(found.target.encode(text.encode()) or ()):
        assert reader.settled
    more = reader.open(b" quick fox")
    assert more is not None
    assert [*reader.settled, *more] == found.draft.encode(bytes(reader.text) + b" quick fox")


@settings(deadline=None)
@given(text=st.text(min_size=1, max_size=300), sizes=st.lists(st.integers(1, 9), min_size=1))
def test_any_text_is_read_whole(text: str, sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(translation, "_KEPT", 3)
        found = between("larger", "byte-level")
        reader = fed(found, text, sizes)
        tokens = reader.open()
    assert tokens is not None
    assert joined(found.draft, [*reader.settled, *tokens]) == text.encode() == bytes(reader.text)


def test_the_end_alone_is_read_anew() -> None:
    reader = fed(between("larger", "byte-level"), TEXT * 40, [3])
    assert len(reader._pieces) <= 2 * translation._KEPT + 3
    assert len(reader.settled) > 1000


def test_what_begins_a_text() -> None:
    """The draft's own token, once; of the target's nothing is read where the draft has none."""
    plain, begun = byte_level(120), byte_level(120, begin="<|begin|>")
    sizes = {"target_size": 400, "draft_size": 400}
    begin = begun.token_to_id("<|begin|>")
    for target in (plain, begun):
        mark = "" if target is plain else "<|begin|>"
        found = Translation(
            spelling_of(target, begin=mark), spelling_of(begun, begin="<|begin|>"), **sizes
        )
        reader = Reader(found)
        reader.read(target.encode("The fox").ids)
        assert reader.open() == begun.encode("The fox").ids
        assert (reader.open() or [])[0] == begin
    found = Translation(spelling_of(begun, begin="<|begin|>"), spelling_of(plain), **sizes)
    reader = Reader(found)
    reader.read(begun.encode("The fox").ids)
    assert reader.open() == plain.encode("The fox").ids


def test_spaces_that_sentencepiece_puts() -> None:
    found = between("sentencepiece", "larger")
    reader = Reader(found)
    reader.read(KINDS["sentencepiece"].encode("The quick fox").ids)
    assert bytes(reader.text) == b"The quick fox"
    back = Reader(between("larger", "sentencepiece"))
    back.read(KINDS["larger"].encode("The quick fox").ids)
    assert back.open() == KINDS["sentencepiece"].encode("The quick fox").ids
