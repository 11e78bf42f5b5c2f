"""Rows become what transformers' logits processors make of them."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from specplug import SamplingParams
from specplug.sampling import distribution, shape_logits

SIZES = st.sampled_from([2, 5, 40, 700, 5000])


@st.composite
def rows(draw: st.DrawFn) -> np.ndarray:
    """Random logits, some of them tied, some huge."""
    size, seed = draw(SIZES), draw(st.integers(0, 2**32))
    random = np.random.default_rng(seed)
    row = random.normal(size=size) * draw(st.sampled_from([0.1, 2.0, 8.0]))
    if draw(st.booleans()):
        row = np.round(row)
    return row.astype(np.float32)


def theirs(row: np.ndarray, history: list[int], processors: list) -> np.ndarray:
    scores = torch.from_numpy(row.copy())[None]
    tokens = torch.tensor([history])
    for processor in processors:
        scores = processor(tokens, scores)
    return scores[0].numpy()


def ours(
    row: np.ndarray, params: SamplingParams, history: list[int], prompt: int = 1
) -> np.ndarray:
    return shape_logits(row, params, np.array(history, dtype=np.int64), prompt)


@given(row=rows(), data=st.data())
def test_shaping_is_transformers(row: np.ndarray, data: st.DataObject) -> None:
    token = st.integers(0, len(row) - 1)
    history = data.draw(st.lists(token, min_size=1, max_size=30))
    bias = data.draw(st.dictionaries(token, st.floats(-5, 5, width=32), max_size=3))
    banned = data.draw(st.lists(token, max_size=3, unique=True))
    penalty = data.draw(st.sampled_from([1.0, 0.7, 1.3]))
    size = data.draw(st.integers(0, 3))
    params = SamplingParams(
        logit_bias=bias, repetition_penalty=penalty, no_repeat_ngram=size, banned_tokens=banned
    )
    processors = []
    if bias:
        sequences = {(token,): value for token, value in bias.items()}
        processors.append(reference.SequenceBiasLogitsProcessor(sequences))
    if penalty != 1:
        processors.append(reference.RepetitionPenaltyLogitsProcessor(penalty))
    if size:
        processors.append(reference.NoRepeatNGramLogitsProcessor(size))
    if banned:
        processors.append(reference.SuppressTokensLogitsProcessor(banned))
    before = row.copy()
    np.testing.assert_allclose(
        ours(row, params, history), theirs(row, history, processors), rtol=1e-6
    )
    np.testing.assert_array_equal(row, before)


@settings(deadline=None, max_examples=300)
@given(
    row=rows(),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 1.9]),
    top_k=st.sampled_from([0, 1, 3, 50]),
    top_p=st.sampled_from([1.0, 0.9, 0.5, 0.05]),
    min_p=st.sampled_from([0.0, 0.05, 0.6]),
    typical_p=st.sampled_from([1.0, 0.9, 0.3]),
)
def test_truncation_is_transformers(row, temperature, top_k, top_p, min_p, typical_p) -> None:
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, typical_p=typical_p
    )
    processors = [reference.TemperatureLogitsWarper(temperature)]
    if top_k:
        processors.append(reference.TopKLogitsWarper(top_k))
    if top_p < 1:
        processors.append(reference.TopPLogitsWarper(top_p))
    if min_p:
        processors.append(reference.MinPLogitsWarper(min_p))
    if typical_p < 1:
        processors.append(reference.TypicalLogitsWarper(typical_p))
    scores = torch.from_numpy(theirs(row, [0], processors)).to(torch.float64)
    expected = torch.softmax(scores, dim=-1).numpy()
    found = distribution(row, params).probabilities()
    assert found.sum() == pytest.approx(1)
    # A token whose mass is on the bound to its last bit, or tied with one that is, may fall on
    # either side: fp32 sums there, fp64 here. It weighs the same wherever it is counted; of typical
    # ones, one may be likelier than the bound, and one as much less likely.
    differing = (found > 0) != (expected > 0)
    edge = np.exp((row[differing] - row.max()) / temperature, dtype=np.float64)
    assert np.unique(np.round(edge, 6)).size <= (2 if typical_p < 1 else 1)
    if not differing.any():
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-9)


@given(row=rows(), data=st.data())
def test_presence_and_frequency_count_the_answer_alone(row, data) -> None:
    token = st.integers(0, len(row) - 1)
    prompt = data.draw(st.lists(token, min_size=1, max_size=9))
    answer = data.draw(st.lists(token, max_size=20))
    params = SamplingParams(presence_penalty=0.5, frequency_penalty=0.25)
    expected = row.astype(np.float64)
    for token in set(answer):
        expected[token] -= 0.5 + 0.25 * answer.count(token)
    found = ours(row, params, [*prompt, *answer], len(prompt))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_forced_tokens_and_custom_processors() -> None:
    row = np.arange(5, dtype=np.float32)

    def even_only(history: np.ndarray, logits: np.ndarray) -> np.ndarray:
        return np.where(np.arange(5) % 2 == 0, logits + len(history), -np.inf)

    params = SamplingParams(forced_tokens={1: 3})
    assert ours(row, params, [0, 0, 0], 2).tolist() == [-np.inf] * 3 + [0, -np.inf]
    np.testing.assert_array_equal(ours(row, params, [0, 0], 2), row)
    shaped = ours(row, SamplingParams(processors=[even_only]), [0, 0])
    assert shaped.tolist() == [2, -np.inf, 4, -np.inf, 6]


def test_nothing_left_is_an_error() -> None:
    row = np.zeros(3, dtype=np.float32)
    params = SamplingParams(temperature=1, banned_tokens=[0, 1, 2])
    with pytest.raises(ValueError, match="no token is left to choose from"):
        distribution(ours(row, params, [0]), params)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("temperature", -0.1, ">= 0"),
        ("temperature", float("nan"), ">= 0"),
        ("temperature", 1e-40, "0, or in [1e-8, 1e8]"),  # 0 in single precision
        ("temperature", 1e300, "0, or in [1e-8, 1e8]"),
        ("top_k", -1, ">= 0"),
        ("top_p", 0, "in (0, 1]"),
        ("top_p", 1.5, "in (0, 1]"),
        ("min_p", 2, "in [0, 1]"),
        ("typical_p", 0, "in (0, 1]"),
        ("repetition_penalty", 0, "> 0"),
        ("presence_penalty", float("inf"), "finite"),
        ("frequency_penalty", float("nan"), "finite"),
        ("repetition_penalty", 1e-300, "in [1e-8, 1e8]"),
        ("presence_penalty", 1e300, "in [-1e30, 1e30]"),
        ("no_repeat_ngram", -2, ">= 0"),
        ("seed", -1, "in [0, 2**64)"),
        ("seed", 2**64, "in [0, 2**64)"),
        ("acceptance", "hope", "coupled, rejection or block"),
    ],
)
def test_values_out_of_range(name: str, value: object, allowed: str) -> None:
    told = re.escape(f"{name} {value!r}: it must be {allowed}")
    with pytest.raises(ValueError, match=told):
        SamplingParams(**{name: value})


def test_biases_and_positions_out_of_range() -> None:
    for bias in (float("nan"), float("inf"), -float("inf"), 1e31):
        told = re.escape(f"logit_bias {bias!r} of token 3: it must be in [-1e30, 1e30]")
        with pytest.raises(ValueError, match=told):
            SamplingParams(logit_bias={3: bias})
    with pytest.raises(ValueError, match=r"^forced_tokens: position -1 of the answer must be >= 0"):
        SamplingParams(forced_tokens={-1: 2})


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(logit_bias={7: 1.0}),
        SamplingParams(banned_tokens=[-1]),
        SamplingParams(forced_tokens={0: 5}),
    ],
)
def test_unknown_token_ids(params: SamplingParams) -> None:
    with pytest.raises(ValueError, match=r"token id -?\d is not in \[0, 5\)"):
        params.check_tokens(5)
