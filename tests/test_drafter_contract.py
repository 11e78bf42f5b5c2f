"""Drafters that propose anything: the text is plain decoding's, or the error names the drafter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specplug import (
    BatchDecoder,
    Drafter,
    DrafterError,
    Proposal,
    SamplingParams,
    SpecplugError,
    SpeculativeDecoder,
)
from specplug.drafters.source import Source
from specplug.drafters.tree import TreeDrafter
from specplug.engines.fake import FakeEngine
from tests_support.batching import drain, ids
from tests_support.chi_squared import critical, statistic
from tests_support.languages import language

VOCAB = 6


class Hostile(Drafter):
    """Proposes what it is given, round after round, whatever the budget."""

    name = "hostile"

    def __init__(self, proposals: list[Any]) -> None:
        self._proposals = proposals
        self._round = 0

    def propose(self, context: Any, budget: Any) -> Any:
        self._round += 1
        made = self._proposals[self._round % len(self._proposals)]
        return made(context, budget) if callable(made) else made

    def fork(self) -> Hostile:
        return Hostile(self._proposals)


def outcome(call: Any) -> Any:
    """What a call gives; None: it named the drafter."""
    try:
        return call()
    except DrafterError as error:
        if "drafter 'hostile' broke its contract" not in str(error):
            raise
        return None


TOKEN = st.integers(0, VOCAB - 1)
ANY_TOKEN = st.one_of(
    TOKEN, TOKEN, TOKEN, st.sampled_from([-1, VOCAB, 2**40, 1.5, "1", None, True, np.int64(2)])
)


@st.composite
def proposals(draw: Any) -> Any:
    """Right ones, and ones with a fault of any kind."""
    size = draw(st.integers(0, 12))
    good = draw(st.booleans())
    tokens = draw(st.lists(TOKEN if good else ANY_TOKEN, min_size=size, max_size=size))
    parents = None
    if draw(st.booleans()):
        parents = [draw(st.integers(-1, node - 1)) for node in range(size)]
        if not good and size:
            parents[draw(st.integers(0, size - 1))] = draw(st.sampled_from([-2, size, 5, 0, "0"]))
    reaches = draw(
        st.none()
        | st.lists(
            st.floats(0, 1) if good else st.floats(allow_nan=True),
            min_size=size,
            max_size=size if good else size + 2,
        )
    )
    rows = None
    if not good and draw(st.booleans()):
        row = st.sampled_from(
            [None, np.full(VOCAB, 1 / VOCAB), np.full(VOCAB, np.nan), np.ones(VOCAB), np.ones(3), 7]
        )
        rows = draw(st.lists(row, min_size=size, max_size=size + 1))
    made = Proposal(tuple(tokens), rows, tuple(parents) if parents is not None else None, reaches)
    odd = st.sampled_from([None, 5, [1, 2], (1,), "ab"])
    return made if good or draw(st.integers(0, 5)) else draw(odd)


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 1.0]),
    seed=st.integers(0, 99),
)


@settings(deadline=None, max_examples=200)
@given(
    made=st.lists(proposals(), min_size=1, max_size=4),
    seed=st.integers(0, 99),
    k=st.integers(1, 6),
    trees=st.booleans(),
    sampling=PARAMS,
    max_length=st.sampled_from([20, 400]),
)
def test_the_text_is_plain_decodings_or_the_drafter_is_named(
    made: list[Any], seed: int, k: int, trees: bool, sampling: SamplingParams, max_length: int
) -> None:
    def engine() -> FakeEngine:
        return FakeEngine(
            language(seed, vocab_size=VOCAB), vocab_size=VOCAB, max_length=max_length, trees=trees
        )

    options: dict[str, Any] = {"max_tokens": 24, "sampling": sampling}
    plain = SpeculativeDecoder(engine()).generate([1, 2], **options)
    target = engine()
    decoder = SpeculativeDecoder(target, drafter=Hostile(made), draft_tokens=k)
    found = outcome(lambda: decoder.generate([1, 2], **options))
    if found is not None:
        assert found.token_ids == plain.token_ids
        assert found.finish_reason == plain.finish_reason
        assert max(found.stats.drafted_per_round, default=0) <= k
    assert all(step.tokens.shape[1] <= 2 + k for step in target.steps)


@settings(deadline=None, max_examples=60)
@given(made=st.lists(proposals(), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_in_a_batch_a_broken_proposal_is_its_own_rows_end(made: list[Any], seed: int) -> None:
    def engine(rows: int) -> FakeEngine:
        return FakeEngine(language(seed, vocab_size=VOCAB), vocab_size=VOCAB, max_batch=rows)

    batch = BatchDecoder(engine(2), drafter=Hostile(made), draft_tokens=3)
    prompts = [[1, 2], [3]]
    asked = [
        batch.submit(prompt, max_tokens=16, speculation=not which)
        for which, prompt in enumerate(prompts)
    ]
    found = drain(batch)
    for generation, prompt in zip(asked, prompts, strict=True):
        if generation.error is not None:
            assert isinstance(generation.error, DrafterError)
            assert generation is asked[0]
            continue
        alone = SpeculativeDecoder(engine(1)).generate(prompt, max_tokens=16).token_ids
        assert tuple(token.id for token in found[generation]) == alone


FAULTS = [
    ({"tokens": (9,)}, r"token id 9 is not in \[0, 6\)"),
    ({"tokens": (-1,)}, "token id -1 is not in"),
    ({"tokens": (1.5,)}, "token id 1.5 is not in"),
    ({"tokens": 5}, "tokens 5 are no sequence"),
    ({"tokens": (1, 2), "parents": (5, 0)}, r"the parent of token 0 is 5: .* \[-1, 0\)"),
    ({"tokens": (1, 2), "parents": (-1, 1)}, "the parent of token 1 is 1"),
    ({"tokens": (1, 2), "parents": (-1,)}, "2 tokens have 1 parents"),
    ({"tokens": (1, 1), "parents": (-1, -1)}, "token id 1 follows token -1 twice"),
    ({"tokens": (1,), "reaches": (1.5,)}, "the chance 1.5 of a token"),
    ({"tokens": (1,), "reaches": (float("nan"),)}, "the chance nan of a token"),
    ({"tokens": (1,), "reaches": (0.5, 0.5)}, "1 tokens have 2 reaches"),
]
UNIFORM = np.full(VOCAB, 1 / VOCAB)
ROWS = [
    (np.full(VOCAB, 0.5), "sum 3"),
    (np.full(VOCAB, np.nan), "sum nan"),
    (np.array([1.5, -0.5, 0, 0, 0, 0]), "the least -0.5"),
    (np.full(VOCAB, np.inf), "sum inf"),
    (np.ones(3) / 3, "must be an array of 6 numbers"),
    ([1 / 6] * 6, "must be an array of 6 numbers"),
    (np.eye(VOCAB)[2], "give 1, which was drawn from them, no chance"),
]


@pytest.mark.parametrize(("fault", "told"), FAULTS)
def test_each_fault_is_told(fault: dict[str, Any], told: str) -> None:
    engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB, trees=True)
    drafter = Hostile([Proposal(**fault)])
    with pytest.raises(DrafterError, match=f"drafter 'hostile' broke its contract: .*{told}"):
        SpeculativeDecoder(engine, drafter=drafter, draft_tokens=4).generate([1])


@pytest.mark.parametrize("rule", ["rejection", "block"])
@pytest.mark.parametrize(("row", "told"), ROWS)
def test_what_a_token_was_drawn_from_is_a_distribution(rule: Any, row: Any, told: str) -> None:
    engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB)
    sampling = SamplingParams(temperature=1.0, acceptance=rule)
    decoder = SpeculativeDecoder(engine, drafter=Hostile([Proposal((1,), [row])]), draft_tokens=2)
    with pytest.raises(DrafterError, match=told):
        decoder.generate([1], sampling=sampling)


def test_an_earlier_sibling_has_no_chance_to_be_drawn_again() -> None:
    engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB, trees=True)
    drafter = Hostile([Proposal((1, 2), [UNIFORM, UNIFORM], (-1, -1))])
    sampling = SamplingParams(temperature=1.0, acceptance="rejection")
    with pytest.raises(DrafterError, match="a chance to an earlier sibling"):
        SpeculativeDecoder(engine, drafter=drafter, draft_tokens=4).generate([1], sampling=sampling)


def test_a_drafter_needs_no_name() -> None:
    """Its class's is used, wherever one is asked for: no fork is the only error here."""

    class Repeating(Drafter):
        def propose(self, context: Any, budget: Any) -> Proposal:
            return Proposal((int(context[-1]),))

    class Lost(Source):
        pass

    @dataclass
    class Named(Drafter):
        seed: int
        name: str

    assert Named(3, "mine").name == "mine"
    for rows in (1, 2):
        engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB, max_batch=rows)
        for made, told in (
            (Repeating(), "drafter 'Repeating'.* no fork"),
            (TreeDrafter("tree", [Lost()]), "source 'Lost'.* no fork"),
        ):
            if rows > 1:
                with pytest.raises(SpecplugError, match=told):
                    BatchDecoder(engine, drafter=made, draft_tokens=4)
                continue
            batch = BatchDecoder(engine, drafter=made, draft_tokens=4)
            asked = batch.submit([1], max_tokens=5)
            tokens = ids(drain(batch)[asked])
            plain = SpeculativeDecoder(engine).generate([1], max_tokens=5)
            assert tokens == list(plain.token_ids)


def test_a_drafter_that_raises_is_named() -> None:
    def fail(context: Any, budget: Any) -> Any:
        raise KeyError("missing")

    def write(context: Any, budget: Any) -> Any:
        context[0] = 3
        return Proposal()

    engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB)
    for made, told in ((fail, "KeyError: 'missing'"), (write, "read-only")):
        decoder = SpeculativeDecoder(engine, drafter=Hostile([made]), draft_tokens=4)
        with pytest.raises(DrafterError, match=f"'hostile' failed in propose: .*{told}"):
            decoder.generate([1])


def test_what_the_target_says_cannot_be_written_over() -> None:
    class Writing(Drafter):
        name = "writing"

        def observe(self, past: int, tokens: Any, scores: Any) -> None:
            scores.logits()[:] = 0

    engine = FakeEngine(language(1, vocab_size=VOCAB), vocab_size=VOCAB)
    with pytest.raises(DrafterError, match=r"'writing' failed in observe: .*read-only"):
        SpeculativeDecoder(engine, drafter=Writing(), draft_tokens=2).generate([1])


@pytest.mark.parametrize("rule", ["rejection", "block"])
def test_an_external_drafters_probabilities_keep_the_law(rule: Any) -> None:
    """Rows in single precision, whose sums are not quite 1."""
    row = language(3, vocab_size=VOCAB)
    random = np.random.default_rng(1)

    def drawn(context: Any, budget: Any) -> Proposal:
        tokens, rows = [], []
        for _ in range(budget.most):
            given = random.dirichlet(np.ones(VOCAB)).astype(np.float32) * np.float32(1.0005)
            tokens.append(int(random.choice(VOCAB, p=given / given.sum(dtype=np.float64))))
            rows.append(given)
        return Proposal(tuple(tokens), rows)

    target = FakeEngine(row, vocab_size=VOCAB)
    decoder = SpeculativeDecoder(target, drafter=Hostile([drawn]), draft_tokens=2)
    counts = np.zeros(VOCAB)  # of the second token, the first that a draft was tried for
    for sample in range(2000):
        sampling = SamplingParams(temperature=1.0, acceptance=rule, seed=5)
        made = decoder.generate([1, 2], max_tokens=4, sampling=sampling, sample=sample).token_ids
        counts[made[1]] += 1

    def chances(*prefix: int) -> np.ndarray:
        weights = np.exp(row(prefix))
        return weights / weights.sum()

    expected = sum(p * chances(1, 2, token) for token, p in enumerate(chances(1, 2)))
    assert statistic(counts, expected) < critical(expected)


@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(made=st.lists(proposals(), min_size=1, max_size=3), k=st.integers(1, 5))
def test_on_graphs_whose_trees_are_not_exact(
    tiny_bundles: dict[str, Path], made: list[Any], k: int
) -> None:
    """w8a8 rounds activations, so a sibling in the call would change the text."""
    global _w8a8
    if _w8a8 is None:
        one = SpeculativeDecoder.from_bundle(tiny_bundles["w8a8"], drafter="none")
        _w8a8 = one, one.generate([65, 66, 67], max_tokens=24).token_ids
    one, plain = _w8a8
    assert not one.target.spec.exact_trees
    vocab = one.target.spec.vocab_size
    branching = Proposal((70, 71, 72, vocab - 1), parents=(-1, -1, 1, -1))
    decoder = SpeculativeDecoder(one.target, drafter=Hostile([branching, *made]), draft_tokens=k)
    found = outcome(lambda: decoder.generate([65, 66, 67], max_tokens=24))
    if found is not None:
        assert found.token_ids == plain


_w8a8: Any = None
