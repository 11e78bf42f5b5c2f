"""Where an answer stands in the text that is expected of it: judged by going through all of it."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specplug.drafters import NgramSource, PredictedSource
from specplug.drafters.predicted import Place
from specplug.expected_text import ExpectedText


def after(text: list[int], answer: list[int], place: int) -> tuple[int, int] | None:
    """The rule, in its own words: the longest match, and of several the nearest one ahead."""
    lengths = {}
    for end in range(len(text) - 1):
        length = 0
        while length < min(12, len(answer), end + 1) and text[end - length] == answer[-1 - length]:
            length += 1
        lengths[end] = length
    longest = max(lengths.values(), default=0)
    if not longest:
        return None
    ends = [end for end, length in lengths.items() if length == longest]
    return next((end for end in ends if end >= place), ends[-1]) + 1, longest


tokens = st.one_of(*(st.lists(st.integers(0, most), max_size=60) for most in (0, 1, 3, 60)))


@given(text=tokens, answer=tokens, place=st.integers(0, 61))
def test_an_answer_is_found_where_its_longest_match_is(text, answer, place) -> None:
    found = ExpectedText(text).after(np.array(answer, dtype=np.int64), place)
    assert found == after(text, answer, place)


@given(
    text=st.lists(st.integers(0, 1), max_size=10).map(lambda one: one * 20),
    cut=st.integers(0, 200),
    more=st.lists(st.integers(0, 1), max_size=14),
    place=st.integers(0, 200),
)
def test_an_answer_is_found_in_a_text_that_repeats_itself(text, cut, more, place) -> None:
    answer = text[:cut] + more
    found = ExpectedText(text).after(np.array(answer, dtype=np.int64), place)
    assert found == after(text, answer, place)


@given(text=tokens, answer=tokens, rounds=st.lists(st.integers(1, 5), max_size=20))
def test_the_source_follows_the_rule_over_an_answer(text, answer, rounds) -> None:
    """Whatever was committed in a round, and whether or not the index was made before."""
    prompt = [7, 8]
    context = np.array(prompt + answer, dtype=np.int64)
    for expected in (None, ExpectedText(text)):
        source = PredictedSource()
        source.reset(SimpleNamespace(prediction=text, expected=expected, prompt_tokens=2))
        place: Place | None = (0, 0)
        index, right, read = 0, 0, 0
        for more in rounds:
            end = min(read + more, len(answer))
            for token in answer[read:end]:
                fits = right >= 0 and index < len(text) and text[index] == token
                index, right = (index + 1, right + 1) if fits else (index, -1)
            read = end
            place = (index, right)
            if right < 0:
                place = after(text, answer[:end], index)
                index, right = place or (index, -1)
            assert source.begin(context[: 2 + end]) == (place if text else None)


@pytest.mark.parametrize("text", [[7] * 50_000, [*range(25)] * 2_000, [1, 2] * 25_000])
def test_what_a_look_costs_does_not_grow_with_the_text(text) -> None:
    """Counted in calls of functions, C's included, of an answer that left the text."""

    def calls(tokens: list[int]) -> int:
        expected = ExpectedText(tokens)
        answer = np.array([*tokens[:11], 99, *tokens[3:9]], dtype=np.int64)
        counted = 0

        def count(frame, event, argument) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            found = expected.after(answer, len(tokens) // 2)
        finally:
            sys.setprofile(None)
        assert found is not None
        return counted

    assert calls(text) < 4 * calls(text[:500])


@given(
    context=st.one_of(
        st.lists(st.integers(0, 2), min_size=1, max_size=80),
        st.lists(st.integers(0, 2), min_size=1, max_size=20).map(lambda one: one * 6),
    ),
    most=st.integers(1, 16),
)
def test_prompt_lookup_takes_the_latest_of_the_longest_matches(context, most) -> None:
    """However its search is cut into blocks."""
    best = (0, 0)
    for end in range(len(context) - 1):
        length = 0
        while length < min(most, end + 1) and context[end - length] == context[-1 - length]:
            length += 1
        if length and length >= best[1]:
            best = (end + 1, length)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specplug.drafters.ngram._BLOCK", 3)
        source = NgramSource(prompt_lookup_min=1, prompt_lookup_max=most)
        found = source.begin(np.array(context, dtype=np.int64))
    assert found == (best if best[1] else None)
