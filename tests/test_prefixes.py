"""The cache of prompts' beginnings: what it gives back is what was saved, within its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug.engines.fake import FakeEngine
from specplug.prefixes import PIECE, PrefixCache
from specplug.types import HIDDEN_STATES
from tests_support.languages import language

VOCAB = 6
table = partial(language, vocab_size=VOCAB)


@given(
    prompts=st.lists(
        st.tuples(st.sampled_from("ab"), st.lists(st.integers(0, 1), min_size=1, max_size=4)),
        max_size=25,
    ),
    room=st.integers(0, 8),
    size=st.integers(0, 3),
)
@settings(max_examples=200, deadline=None)
def test_the_prefix_cache_gives_what_was_saved(prompts, room, size) -> None:
    """Of the same tenant's same beginning, within its bounds, and never the whole prompt; hidden
    states of some size with it, if there are any."""
    engine = FakeEngine(table(1), vocab_size=VOCAB, max_batch=2)
    cache = PrefixCache(room * PIECE * (8 + 4 * size))
    saved: set[tuple[str, tuple[int, ...]]] = set()

    def states_of(tenant: str, before: Sequence[int]) -> Any:
        """Of a piece, by all tokens up to its end."""
        return np.full((PIECE, size), hash((tenant, *before)) % 1000, dtype=np.float32)

    for tenant, blocks in prompts:
        prompt = [token for block in blocks for token in [block] * PIECE]
        engine._cache = [[], list(prompt)]
        told: list[int] = []

        def observe(
            past: int,
            tokens: Sequence[int],
            scores: Any,
            prompt: list[int] = prompt,
            told: list[int] = told,
            tenant: str = tenant,
        ) -> None:
            assert tokens == prompt[past : past + PIECE]
            wanted = states_of(tenant, prompt[: past + PIECE])
            assert np.array_equal(scores.hidden(HIDDEN_STATES), wanted[None])
            assert scores.logits().shape == (1, 0, VOCAB)
            assert scores.argmax().shape == (1, 0)
            told.append(past)

        loaded = cache.load(engine, 0, tenant, prompt, observe)
        assert told == ([*range(0, loaded, PIECE)] if size else [])
        assert loaded < len(prompt)
        assert loaded % PIECE == 0
        assert engine._cache[0] == prompt[:loaded]
        if loaded:
            assert (tenant, tuple(blocks[: loaded // PIECE])) in saved
        pieces = range(0, len(prompt), PIECE) if size else ()
        states = {start: states_of(tenant, prompt[: start + PIECE]) for start in pieces}
        cache.save(engine, 1, tenant, prompt, states)
        saved |= {(tenant, tuple(blocks[:n])) for n in range(1, len(blocks) + 1)}
        assert cache.bytes <= cache.most_bytes
        shares = len({each for each, _ in saved})
        if room >= shares * len(blocks) and len(blocks) > 1:
            engine._cache[0] = []
            assert cache.load(engine, 0, tenant, prompt, observe) == len(prompt) - PIECE
    cache.clear()
    assert cache.bytes == 0


@given(
    saved=st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 30), st.integers(1, 6)), max_size=60
    ),
    room=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_no_tenant_takes_what_is_anothers_share(saved, room) -> None:
    """While it has a share of the room or less, nothing that others keep makes it lose a piece."""
    engine = FakeEngine(table(1), vocab_size=VOCAB, max_batch=1)
    cache = PrefixCache(room * PIECE * 8)
    for tenant, begin, blocks in saved:
        prompt = [(begin // 6) % VOCAB, begin % VOCAB, *[1] * (blocks * PIECE - 2)]
        engine._cache = [list(prompt)]
        before = {name: {*kept.pieces} for name, kept in cache._tenants.items()}
        cache.save(engine, 0, tenant, prompt, {})
        after = {name: {*kept.pieces} for name, kept in cache._tenants.items()}
        share = room / len(before.keys() | {tenant})
        for name in before.keys() - {tenant}:
            lost = before[name] - after.get(name, set())
            assert len(after.get(name, ())) >= min(len(before[name]), int(share)) or not lost
        assert all(after.values())
        sizes = {name: kept.bytes for name, kept in cache._tenants.items()}
        assert sizes == {name: len(pieces) * PIECE * 8 for name, pieces in after.items()}
        assert cache.bytes == sum(sizes.values()) <= cache.most_bytes
        if room >= 3 * blocks:
            assert len(after[tenant]) >= blocks  # a whole prompt within the share is kept


def test_a_negative_prefix_cache_is_refused() -> None:
    with pytest.raises(ValueError, match="-1 bytes"):
        PrefixCache(-1)
