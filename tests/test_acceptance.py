"""Acceptance rules are pure functions: properties."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specplug.acceptance import accept_greedy
from specplug.types import Proposal

TOKENS = st.integers(0, 2)


@given(st.lists(TOKENS, max_size=6), st.data())
def test_greedy_accepts_the_longest_agreeing_prefix(drafted, data) -> None:
    size = len(drafted) + 1 + data.draw(st.integers(0, 3))  # padding rows may follow
    best = np.array(data.draw(st.lists(TOKENS, min_size=size, max_size=size)))
    verdict = accept_greedy(best, Proposal(tuple(drafted)))
    assert list(best[: verdict.accepted]) == drafted[: verdict.accepted]
    if verdict.accepted < len(drafted):
        assert best[verdict.accepted] != drafted[verdict.accepted]
    assert verdict.bonus == best[verdict.accepted]
