"""The suffix automaton against a slow reference that looks at every place of the text."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specplug.suffix_automaton import NOWHERE, SuffixAutomaton

TEXT = st.lists(st.integers(0, 3), max_size=40)


def built(text: list[int], cuts: list[int]) -> SuffixAutomaton:
    """Of a text that comes in pieces."""
    automaton = SuffixAutomaton()
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        automaton.extend(text[start:end])
    return automaton


def longest_suffix(text: list[int], context: list[int], last_end: int) -> int:
    """Tokens of the longest suffix of ``context`` that ends in ``text`` at or before a place."""
    return max(
        (
            length
            for length in range(1, len(context) + 1)
            if any(
                text[end - length : end] == context[len(context) - length :]
                for end in range(length, last_end + 1)
            )
        ),
        default=0,
    )


@given(TEXT, st.data())
def test_end_is_the_longest_context_that_occurred_before(text, data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
    automaton = built(text, cuts)
    assert automaton.tokens == len(text)
    assert automaton.end()[1] == longest_suffix(text, text, len(text) - 1)


@given(TEXT, st.lists(st.integers(0, 4), max_size=30), st.integers(0, 30))
def test_steps_and_continuations(text, walk, later) -> None:
    """Places stay right while the text grows under them."""
    first = text[: min(later, len(text))]
    automaton = built(first, [])
    place, context = NOWHERE, []
    for number, token in enumerate(walk):
        if number == len(walk) // 2:
            automaton.extend(text[len(first) :])
            first = text
        place = automaton.step(place, token)
        context.append(token)
        longest = longest_suffix(first, context, len(first))
        if number < len(walk) // 2 or place[1] > longest:
            assert place[1] == longest
        found = automaton.continuations(place)
        if not found:
            continue
        length = found[0][3]
        following = Counter(
            first[end]
            for end in range(length, len(first))
            if first[end - length : end] == context[len(context) - length :]
        )
        assert {token for token, *_ in found} == set(following)
        assert {total for *_, total, _ in found} == {sum(times for _, times, *_ in found)}
        for token, times, _, _ in found:
            assert times == following[token] or times >= 12  # counted up to the twelfth context
        assert [times for _, times, *_ in found] == sorted(
            (times for _, times, *_ in found), reverse=True
        )


def test_size_is_linear() -> None:
    """At most two states a token, whatever the text."""
    random = np.random.default_rng(0)
    for text in ([1] * 2000, [0, 1] * 1000, random.integers(0, 3, size=2000).tolist()):
        automaton = built(text, [])
        assert len(automaton._next) <= 2 * len(text)
        transitions = sum(map(len, automaton._next))
        assert transitions <= 3 * len(text)


def test_a_repeated_text_goes_on_from_its_beginning() -> None:
    automaton = built([5, 6, 7] * 3, [])
    place, said = automaton.end(), []
    for _ in range(9):
        (token, *_), *_ = automaton.continuations(place)
        said.append(token)
        place = automaton.step(place, token)
    assert said == [5, 6, 7] * 3
