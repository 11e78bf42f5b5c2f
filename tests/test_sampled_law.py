"""The running loop against the joint distribution of the target, and with planted bugs."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from specplug import ModelDrafter, SamplingParams, SpeculativeDecoder
from specplug.engines.fake import FakeEngine
from specplug.sampler import Sampler
from specplug.sampling import distribution
from tests_support import chi_squared

VOCAB, TOKENS = 4, 2  # a sequence's outcomes are its two tokens together
SEQUENCES, A_GENERATION = 200_000, 400
PROCESSES = 2
TARGET, DRAFT = 1, 2  # languages
FILTERS = {"temperature": 0.9, "top_k": 3, "min_p": 0.02}

pytestmark = pytest.mark.slow


def language(seed: int) -> Callable[[tuple[int, ...]], np.ndarray]:
    """Rows that depend on the tokens of the running sequence alone: so sequences are independent.

    A prompt of one token comes first, then one sequence after the other.
    """
    rows: dict[tuple[int, ...], np.ndarray] = {}

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        inside = (len(prefix) - 1) % TOKENS
        key = prefix[len(prefix) - inside :]
        if key not in rows:
            rows[key] = np.random.default_rng([seed, *(t + 1 for t in key)]).normal(size=VOCAB)
        return rows[key]

    return row


def expected() -> np.ndarray:
    """The target's joint distribution, f64[V, V]."""
    target, params = language(TARGET), SamplingParams(**FILTERS)

    def after(prefix: tuple[int, ...]) -> np.ndarray:
        return distribution(target((0, *prefix)).astype(np.float32), params).probabilities()

    return np.array([after(())[t] * after((t,)) for t in range(VOCAB)])


def plant(bug: str | None) -> None:
    """Change the sampler of this process."""
    right = Sampler._own

    def bonus_from_the_draft(self, weights, start, accepted, of):
        wrong = of.of(self.last_draft) if accepted == 2 else weights
        return right(self, wrong, start, accepted, of)

    def not_the_residual(self, weights, start, accepted, of):
        return right(self, of.weights, start, accepted, of)

    drafted = Sampler.draft

    def remember_draft(self, scores, context, tokens):
        token, row = drafted(self, scores, context, tokens)
        self.last_draft = row
        return token, row

    def unfiltered_draft(self, scores, context, tokens):
        token, _ = drafted(self, scores, context, tokens)
        raw = SamplingParams(temperature=1)
        return token, distribution(scores.logits()[0, 0], raw).probabilities()

    if bug == "bonus from the draft":
        Sampler._own, Sampler.draft = bonus_from_the_draft, remember_draft
    elif bug == "target instead of residual":
        Sampler._own = not_the_residual
    elif bug == "filters on one side":
        Sampler.draft = unfiltered_draft
    else:
        assert bug is None


def count(acceptance: str, bug: str | None, part: int, sequences: int) -> np.ndarray:
    """Outcomes of a share of the sequences, i64[V, V]; in a process of its own."""
    plant(bug)
    counts = np.zeros((VOCAB, VOCAB), dtype=np.int64)
    decoder = SpeculativeDecoder(
        FakeEngine(language(TARGET), vocab_size=VOCAB),
        drafter=ModelDrafter(FakeEngine(language(DRAFT), vocab_size=VOCAB)),
        draft_tokens=2,
    )
    for seed in range(part, sequences // A_GENERATION, PROCESSES):
        params = SamplingParams(**FILTERS, acceptance=acceptance, seed=seed)
        tokens = decoder.generate([0], max_tokens=A_GENERATION * TOKENS, sampling=params).token_ids
        np.add.at(counts, tuple(np.array(tokens).reshape(-1, TOKENS).T), 1)
    return counts


def statistic(acceptance: str, bug: str | None = None, sequences: int = SEQUENCES) -> float:
    """Chi-squared of the loop's outcomes against the target's distribution."""
    with ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(count, acceptance, bug, part, sequences) for part in range(PROCESSES)]
        counts = sum(part.result() for part in parts)
    assert counts.sum() == sequences
    return chi_squared.statistic(counts, expected())


def critical() -> float:
    return chi_squared.critical(expected())


def test_power() -> None:
    """An error of 2% in total variation is found in more than 99 of 100 runs."""
    assert chi_squared.power(expected(), SEQUENCES, 0.02) > 0.99


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block"])
def test_joint_outcomes_are_the_targets(acceptance: str) -> None:
    assert statistic(acceptance) < critical()


@pytest.mark.parametrize(
    "bug", ["bonus from the draft", "target instead of residual", "filters on one side"]
)
def test_planted_bugs_are_found(bug: str) -> None:
    """With a quarter of the sequences: it takes no more, and that is harder."""
    assert statistic("rejection", bug, SEQUENCES // 4) > critical()
