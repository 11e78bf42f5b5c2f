"""The noise is the published Philox, whichever way it is asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from specplug.noise import Noise, Purpose, philox

GOLDEN = Path(__file__).parent / "golden" / "noise.json"
WORD = st.integers(0, 2**64 - 1)


def test_known_answers() -> None:
    """Of Random123's own test file (kat_vectors, philox4x64 10)."""
    for counter, key, expected in (
        ([0] * 4, [0] * 2, "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b"),
        (
            [2**64 - 1] * 4,
            [2**64 - 1] * 2,
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
    ):
        found = philox(np.array(counter, dtype=np.uint64)[:, None], *key)[:, 0]
        assert [f"{word:016x}" for word in found] == expected.split()


@given(
    seed=WORD,
    sample=st.integers(0, 100),
    position=st.integers(0, 2**40),
    purpose=st.sampled_from(Purpose),
    attempt=st.integers(0, 2**20),
    tokens=st.lists(st.integers(0, 300) | st.integers(0, 40_000), min_size=1, max_size=20),
)
def test_some_tokens_get_what_all_would(seed, sample, position, purpose, attempt, tokens) -> None:
    noise, ids = Noise(seed, sample), np.array(tokens)
    whole = noise.exponentials(position, purpose, 40_001, attempt=attempt)
    some = noise.exponentials(position, purpose, 40_001, ids, attempt=attempt)
    np.testing.assert_array_equal(whole[ids], some)
    assert (whole > 0).all()


def test_golden_values() -> None:
    """What another language's implementation must give; written by this one, once."""
    for case in json.loads(GOLDEN.read_text()):
        noise = Noise(case["seed"], case["sample"])
        where = (case["position"], Purpose(case["purpose"]))
        numbers = noise.exponentials(
            *where, 49152, np.array(case["tokens"]), attempt=case["attempt"]
        )
        np.testing.assert_allclose(numbers, case["exponentials"], rtol=1e-15)
        assert noise.uniforms(*where, 3, attempt=case["attempt"])[0] == case["uniform"]


def test_every_part_of_the_address_counts() -> None:
    drawn = {
        Noise(seed, sample).uniforms(position, purpose, 1, attempt=attempt)[0]
        for seed in (0, 1)
        for sample in (0, 1)
        for position in (0, 1)
        for purpose in Purpose
        for attempt in (0, 1)
    }
    assert len(drawn) == 2**4 * len(Purpose)


def test_exponentials_are_exponential() -> None:
    """Kolmogorov and Smirnov's distance of 200,000; above 0.0044 in one of a thousand runs."""
    numbers = np.sort(Noise(1).exponentials(3, Purpose.token, 200_000))
    ranks = np.arange(1, len(numbers) + 1) / len(numbers)
    assert np.abs(ranks - (1 - np.exp(-numbers))).max() < 0.0044
