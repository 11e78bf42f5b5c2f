"""Trees of drafts: the text is what it is without, and its law, whatever the tree."""

from __future__ import annotations

import itertools
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import Drafter, Proposal, SamplingParams, SpeculativeDecoder
from specplug.acceptance import follow, try_siblings
from specplug.engines.fake import FakeEngine
from specplug.sampler import Sampler
from tests_support.languages import language

VOCAB = 5


def trees(most: int):
    """Proposals of up to ``most`` tokens, siblings all different."""

    def with_tokens(shape):
        parents = [min(parent, node) - 1 for node, parent in enumerate(shape)]
        used = defaultdict(set)
        kept, tokens, index = [], [], {-1: -1}
        for node, parent in enumerate(parents):
            if parent not in index:
                continue
            free = [token for token in range(VOCAB) if token not in used[parent]]
            if not free:
                continue
            used[parent].add(free[0])
            index[node] = len(tokens)
            kept.append(index[parent])
            tokens.append(free[0])
        shuffled = np.random.default_rng(len(shape)).permutation(VOCAB)
        return Proposal(tuple(int(shuffled[t]) for t in tokens), None, tuple(kept))

    return st.lists(st.integers(0, most), max_size=most).map(with_tokens)


class Planted(Drafter):
    """Drafts trees from a list, some of which hold what the target will say."""

    name = "planted"

    def __init__(self, proposals):
        self._proposals = itertools.cycle(proposals or [Proposal()])

    def propose(self, context, budget):
        proposal = next(self._proposals)
        if len(proposal) > budget.most:
            return Proposal()
        assert budget.branching
        return proposal


@given(
    st.lists(trees(7), max_size=4),
    st.integers(0, 200),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.8]),
)
@settings(max_examples=150, deadline=None)
def test_text_is_plain_decodings(proposals, seed, min_width, temperature) -> None:
    row = language(seed, vocab_size=VOCAB)
    sampling = SamplingParams(temperature=temperature, seed=seed)
    plain = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB))
    target = FakeEngine(row, vocab_size=VOCAB, min_width=min_width, trees=True)
    drafted = SpeculativeDecoder(target, drafter=Planted(proposals), draft_tokens=7)
    wanted = plain.generate([1, 2], max_tokens=30, sampling=sampling).token_ids
    result = drafted.generate([1, 2], max_tokens=30, sampling=sampling)
    assert result.token_ids == wanted
    if any(map(len, proposals)):
        assert result.stats.drafted


def test_log_probabilities_are_those_of_the_path() -> None:
    row = language(3, vocab_size=VOCAB)
    bushy = Proposal((0, 1, 2, 3, 4, 0, 1, 2, 3, 4), None, (-1,) * 5 + (2,) * 5)
    options = {"max_tokens": 20, "logprobs": 2}
    plain = SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB)).generate([1], **options)
    target = FakeEngine(row, vocab_size=VOCAB, trees=True)
    decoder = SpeculativeDecoder(target, drafter=Planted([bushy]), draft_tokens=10)
    drafted = decoder.generate([1], **options)
    assert drafted.stats.accepted >= 3
    assert [t.logprobs for t in drafted.tokens] == [t.logprobs for t in plain.tokens]


@given(trees(8), st.integers(0, 1000))
def test_follow_takes_the_targets_own_path(proposal, seed) -> None:
    """Every accepted token is the target's choice after the path before it, and so is the bonus."""
    random = np.random.default_rng(seed)
    choices = random.integers(0, VOCAB, size=len(proposal) + 1).tolist()
    verdict = follow(proposal, lambda path: choices[path[-1] + 1 if path else 0])
    at, children = -1, proposal.children()
    for node in verdict.path:
        assert node in children[at]
        assert proposal.tokens[node] == choices[at + 1]
        at = node
    assert verdict.bonus == choices[at + 1]
    assert verdict.bonus not in [proposal.tokens[child] for child in children.get(at, ())]


def rows(seed: int, count: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    made = [random.exponential(size=4) ** 2 * (random.random(4) > 0.25) for _ in range(count)]
    return [row / row.sum() if row.sum() else np.eye(4)[0] for row in made]


@pytest.mark.parametrize("siblings", [1, 2, 3])
@pytest.mark.parametrize("drawn", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_siblings_change_no_distribution(siblings: int, drawn: bool, seed: int) -> None:
    """Summed over every draw of the siblings and every decision: the target's law, to 1e-12."""
    target, draft = rows(seed, 2)
    draft = (draft + 0.02) / 1.08  # every token can be drawn, also what the target never says
    found = np.zeros(4)
    for tokens in itertools.permutations(range(4), siblings):
        # Drawn without replacement, each from what the ones before leave; or simply named.
        chance, left, drafts = 1.0, draft.copy(), []
        for token in tokens:
            if not drawn:
                chance *= 1 / (4 - len(drafts))
                drafts.append(np.eye(4)[token])
                continue
            row = left / left.sum() if left.sum() else np.eye(4)[token] * 0
            chance *= row[token]
            drafts.append(row)
            left[token] = 0
        if not chance:
            continue
        reached = chance
        for which in range(siblings):
            uniforms = [1.0] * which + [0.0] + [1.0] * siblings
            chances, accepted, _ = try_siblings(target, drafts, tokens, uniforms)
            if accepted == which:
                found[tokens[which]] += reached * chances[which]
            reached *= 1 - chances[which] if len(chances) > which else 0.0
        _, accepted, own = try_siblings(target, drafts, tokens, [1.0] * siblings)
        if accepted is None and reached > 0:
            found += reached * own / own.sum()
    assert found == pytest.approx(target, abs=1e-12)


def test_sampled_trees_have_the_targets_law() -> None:
    """Rejection over a tree, through the sampler: chi-squared on 40,000 draws of two tokens."""
    table = [np.log(row + 1e-9) for row in rows(5, 5)]

    class Rows:
        def logits(self):
            return np.array([table], dtype=np.float32)

    proposal = Proposal((0, 1, 2, 3), None, (-1, -1, 0, 0))
    params = SamplingParams(temperature=1.0, acceptance="rejection")
    counts = np.zeros(4)
    second = np.zeros(4)
    for sample in range(40_000):
        sampler = Sampler(params, vocab_size=4, prompt_tokens=1, sample=sample)
        verdict = sampler.judge(Rows(), np.array([0]), proposal)
        said = [proposal.tokens[node] for node in verdict.path] + [verdict.bonus]
        counts[said[0]] += 1
        if len(said) > 1 and said[0] == 0:
            second[said[1]] += 1
    for row, seen in ((table[0], counts), (table[1], second)):
        expected = np.exp(row) / np.exp(row).sum() * seen.sum()
        likely = expected > 5
        statistic = ((seen - expected)[likely] ** 2 / expected[likely]).sum()
        assert statistic < 21.1  # 3 degrees of freedom: one run in ten thousand


def test_block_verification_is_for_chains() -> None:
    params = SamplingParams(temperature=1.0, acceptance="block")
    sampler = Sampler(params, vocab_size=4, prompt_tokens=1)
    assert not sampler.branching

    class Rows:
        def logits(self):
            return np.zeros((1, 3, 4), dtype=np.float32)

    with pytest.raises(ValueError, match="block verification is for chains"):
        sampler.judge(Rows(), np.array([0]), Proposal((0, 1), None, (-1, -1)))


def test_trees_are_drafted_only_where_they_are_exact() -> None:
    row = language(1, vocab_size=VOCAB)
    seen = []

    class Watching(Drafter):
        name = "watching"

        def propose(self, context, budget):
            seen.append(budget.branching)
            return Proposal()

    for trees, inexact in ((True, False), (False, True)):
        engine = FakeEngine(row, vocab_size=VOCAB, trees=trees)
        SpeculativeDecoder(
            engine, drafter=Watching(), draft_tokens=3, inexact_trees=inexact
        ).generate([1], max_tokens=3)
    assert seen == [True, False]
