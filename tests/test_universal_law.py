"""Drafts in other tokens through the running loop, against the target's joint distribution."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from specplug import SamplingParams, SpeculativeDecoder
from specplug.drafters import TreeDrafter
from specplug.drafters.universal import WAYS, IntersectionSource
from specplug.engines.fake import FakeEngine
from specplug.sampling import distribution
from specplug.spelling import Spelling
from specplug.translation import Translation
from specplug.types import DrafterError
from tests_support import chi_squared
from tests_support.languages import language

SEQUENCES, A_GENERATION, TOKENS = 24_000, 400, 2
OURS, THEIRS = "abcd", "ecbxa"  # the letters that each has, a token each; d is the target's alone
FILTERS: dict[str, Any] = {"temperature": 0.9, "min_p": 0.02}

pytestmark = pytest.mark.slow


def letters(known: str) -> Spelling:
    made = Tokenizer(models.BPE({letter: i for i, letter in enumerate(known)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return Spelling(made, special_tokens={}, stop_token_ids=[])


def rows(seed: int, vocab_size: int) -> Any:
    """Of independent sequences of two tokens each, after a prompt of one."""
    tell = language(seed, TOKENS, vocab_size=vocab_size)
    known: dict[tuple[int, ...], np.ndarray] = {}

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        inside = (len(prefix) - 1) % TOKENS
        key = prefix[len(prefix) - inside :]
        if key not in known:
            known[key] = tell(key)
        return known[key]

    return row


def expected() -> np.ndarray:
    """The target's joint distribution, f64[V, V]."""
    target, params = rows(1, len(OURS)), SamplingParams(**FILTERS)

    def after(*said: int) -> np.ndarray:
        return distribution(target((0, *said)).astype(np.float32), params).probabilities()

    return np.array([after()[token] * after(token) for token in range(len(OURS))])


def statistic(way: str, acceptance: Any) -> float:
    """Chi-squared of the loop's outcomes against the target's distribution."""
    counts = np.zeros((len(OURS), len(OURS)), dtype=np.int64)
    translation = Translation(
        letters(OURS), letters(THEIRS), target_size=len(OURS), draft_size=len(THEIRS)
    )
    engine = FakeEngine(rows(2, len(THEIRS)), vocab_size=len(THEIRS))
    decoder = SpeculativeDecoder(
        FakeEngine(rows(1, len(OURS)), vocab_size=len(OURS)),
        drafter=TreeDrafter("universal", [WAYS[way](engine, translation)]),  # type: ignore[index]
        draft_tokens=2,
    )
    drafted = accepted = 0
    for seed in range(SEQUENCES // A_GENERATION):
        params = SamplingParams(**FILTERS, acceptance=acceptance, seed=seed)
        found = decoder.generate([0], max_tokens=A_GENERATION * TOKENS, sampling=params)
        np.add.at(counts, tuple(np.array(found.token_ids).reshape(-1, TOKENS).T), 1)
        drafted, accepted = drafted + found.stats.drafted, accepted + found.stats.accepted
    assert 0 < accepted < drafted
    return chi_squared.statistic(counts, expected())


def critical() -> float:
    return chi_squared.critical(expected())


def test_power() -> None:
    """An error of 5% in total variation is found in more than 99 of 100 runs."""
    assert chi_squared.power(expected(), SEQUENCES, 0.05) > 0.99


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block"])
@pytest.mark.parametrize("way", WAYS)
def test_joint_outcomes_are_the_targets(way: str, acceptance: str) -> None:
    assert statistic(way, acceptance) < critical()


def test_what_was_drawn_from_all_that_the_draft_has_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A distribution that was not made one again after the draft's own tokens were left out."""
    right = IntersectionSource.guesses

    def not_made_one_again(self: Any, place: Any) -> Any:
        found = right(self, place)
        if not found:
            return found
        logits = np.array(self.engine._row(tuple(self._entries)), dtype=np.float32)
        whole = distribution(logits, SamplingParams(temperature=0.9)).probabilities()
        row = np.zeros(len(OURS))
        row[self._ours] = whole[self._theirs]
        return [type(guess)(guess.token, guess.kind, row) for guess in found]

    monkeypatch.setattr(IntersectionSource, "guesses", not_made_one_again)
    with pytest.raises(DrafterError, match=r"have the sum 0.*they must be 1"):
        statistic("intersection", "rejection")
