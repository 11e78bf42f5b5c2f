"""Drafts of a model with another tokenizer: the text is plain decoding's, the law the target's."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from specplug import Budget, Request, SamplingParams, SpecplugError, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.controller import CallCosts
from specplug.drafters import TreeDrafter
from specplug.drafters.universal import WAYS, TranslatingSource
from specplug.engines.fake import FakeEngine
from specplug.history import History
from specplug.opening import make_drafter
from specplug.sampler import Sampler
from specplug.sampling import distribution
from specplug.spelling import Spelling
from specplug.translation import Translation
from tests_support.batching import drain, ids
from tests_support.languages import language
from tests_support.made_tokenizers import END, TEXT, byte_level, sentencepiece, spelling_of

TARGETS = {
    "byte-level": byte_level(150),
    "sentencepiece": sentencepiece(280),
}
DRAFTS = {
    "smaller": byte_level(100),
    "other": byte_level(200, ("<|stop|>",), TEXT[::-1]),
    "sentencepiece": sentencepiece(260),
}
Row = Callable[[tuple[int, ...]], np.ndarray]


def draft_spelling(name: str) -> Spelling:
    return spelling_of(DRAFTS[name], "<|stop|>" if name == "other" else END)


def source(way: str, target: str, draft: str, row: Row, **engine: Any) -> TranslatingSource:
    """Of a draft whose table has two rows that no token has."""
    size = DRAFTS[draft].get_vocab_size() + 2
    translation = Translation(
        spelling_of(TARGETS[target]),
        draft_spelling(draft),
        target_size=TARGETS[target].get_vocab_size(),
        draft_size=size,
    )
    return WAYS[way](FakeEngine(row, vocab_size=size, **engine), translation)  # type: ignore[index]


def drafter(*given: Any, **engine: Any) -> TreeDrafter:
    return TreeDrafter("universal", [source(*given, **engine)])


def decoder(target: str, row: Row, made: Any, k: int | str = 4, **engine: Any) -> Any:
    size = TARGETS[target].get_vocab_size()
    return SpeculativeDecoder(
        FakeEngine(row, vocab_size=size, **engine),
        drafter=made,
        draft_tokens=k,  # type: ignore[arg-type]
        stop_token_ids=[TARGETS[target].token_to_id(END)],
    )


def table(name: str, tokenizers: dict[str, Tokenizer], seed: int, padding: int = 0) -> Row:
    return language(seed, 1, vocab_size=tokenizers[name].get_vocab_size() + padding)


def follows(tokenizer: Tokenizer, text: str, end: str = END) -> Row:
    """A model that knows one text: in tokens of its own, or byte by byte up to the next of them."""
    found = spelling_of(tokenizer, end)
    last, tokens = tokenizer.token_to_id(end), tokenizer.encode(text).ids
    size, whole, after = tokenizer.get_vocab_size() + 2, b"", {}
    for token in tokens:
        after[len(whole)] = token
        whole += found[token] or b""

    def row(prefix: tuple[int, ...]) -> np.ndarray:
        said = b"".join(found[token] or b"" for token in prefix)
        at, token = len(said), last
        if whole.startswith(said) and at < len(whole):
            token = after.get(at, found._parts(whole[at : at + 1])[0])
        return np.eye(size, dtype=np.float32)[token] * 9

    return row


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0]),
    top_k=st.sampled_from([0, 5]),
    repetition_penalty=st.sampled_from([1.0, 1.3]),
    banned_tokens=st.sampled_from([(), (70, 71)]),
    seed=st.integers(0, 99),
)


@settings(deadline=None, max_examples=60)
@given(
    way=st.sampled_from([*WAYS]),
    target=st.sampled_from([*TARGETS]),
    draft=st.sampled_from([*DRAFTS]),
    sampling=params,
    seeds=st.tuples(st.integers(0, 99), st.integers(0, 99)),
    prompt=st.lists(st.integers(0, 250), min_size=1, max_size=60),
    k=st.integers(1, 6),
    min_width=st.integers(1, 3),
    short=st.booleans(),
)
def test_the_text_is_plain_decodings(
    way, target, draft, sampling, seeds, prompt, k, min_width, short
) -> None:
    """Whatever the two models say, bytes that are no text included; also beyond its context."""
    row = table(target, TARGETS, seeds[0])
    wanted = decoder(target, row, None, 0).generate(prompt, max_tokens=40, sampling=sampling)
    made = drafter(
        way,
        target,
        draft,
        table(draft, DRAFTS, seeds[1], padding=2),
        min_width=min_width,
        max_length=len(prompt) + 30 if short else 1000,
    )
    loop = decoder(target, row, made, k)
    for _ in range(2):
        found = loop.generate(prompt, max_tokens=40, sampling=sampling)
        assert found.token_ids == wanted.token_ids
    if not short and sampling.temperature == 0 and len(found.tokens) > 5 and way == "intersection":
        assert found.stats.drafted


@pytest.mark.parametrize(
    ("draft", "least"), [("smaller", 0.6), ("other", 0.4), ("sentencepiece", 0.8)]
)
@pytest.mark.parametrize("target", TARGETS)
def test_what_both_know_is_accepted(target: str, draft: str, least: float) -> None:
    """Two models of one text. What is refused are beginnings of words, where the draft writes them
    in many more tokens than the target."""
    end = "<|stop|>" if draft == "other" else END
    made = drafter("reencoding", target, draft, follows(DRAFTS[draft], TEXT, end))
    found = knowing(target, TEXT, made)
    assert found.stats.accepted >= least * found.stats.drafted
    assert len(found.stats.drafted_per_round) <= len(found.tokens) / 2


def test_tokens_of_other_numbers_are_accepted() -> None:
    """The same tokens under other ids, and another one that ends the text."""
    DRAFTS["renumbered"] = renumbered(TARGETS["byte-level"])
    made = drafter("intersection", "byte-level", "renumbered", follows(DRAFTS["renumbered"], TEXT))
    found = knowing("byte-level", TEXT, made)
    assert {token.origin for token in found.tokens} == {"plain", "draft", "bonus"}
    assert found.stats.accepted >= found.stats.drafted - 3  # after the end it drafts in vain


def knowing(target: str, text: str, made: Any) -> Any:
    """The answer of a target that knows a text, after its beginning; the right one."""
    tokens = TARGETS[target].encode(text).ids
    loop = decoder(target, follows(TARGETS[target], text), made)
    found = loop.generate(tokens[:5], max_tokens=len(tokens) + 9)
    assert [*tokens[:5], *found.token_ids] == [*tokens, TARGETS[target].token_to_id(END)]
    return found


def renumbered(tokenizer: Tokenizer) -> Tokenizer:
    data = json.loads(tokenizer.to_str())
    vocab = data["model"]["vocab"]
    data["model"]["vocab"] = {token: len(vocab) - 1 - i for token, i in vocab.items()}
    return Tokenizer.from_str(json.dumps(data))


@pytest.mark.parametrize("way", WAYS)
def test_nothing_is_read_twice(way: str) -> None:
    """Calls of the draft are as wide as the text that is new, and a few tokens at its end."""
    text = TEXT * 12
    made = drafter(way, "byte-level", "smaller", follows(DRAFTS["smaller"], text))
    (one,) = made.sources
    found = knowing("byte-level", text, made)
    widths = [step.tokens.shape[1] for step in one.engine.steps]
    assert len(widths) > len(found.tokens) / 5
    assert max(widths[1:]) <= 24
    assert sum(widths) < 3 * len(DRAFTS["smaller"].encode(text).ids)


@settings(deadline=None, max_examples=60)
@given(
    prompt=st.lists(st.integers(0, 250), min_size=1, max_size=30),
    drafted=st.lists(st.integers(0, 250), max_size=4),
    sampling=params.filter(lambda given: given.temperature > 0),
    seed=st.integers(0, 99),
    acceptance=st.sampled_from(["rejection", "block"]),
)
def test_the_intersection_draws_from_its_share_of_the_drafts_distribution(
    prompt, drafted, sampling, seed, acceptance
) -> None:
    """A distribution over the target's vocabulary: the draft's over what both have, filtered."""
    row = table("smaller", DRAFTS, seed, padding=2)
    one = source("intersection", "byte-level", "smaller", row)
    size = TARGETS["byte-level"].get_vocab_size()
    sampling = replace(sampling, acceptance=acceptance, repetition_penalty=1.0)
    sampler = Sampler(sampling, vocab_size=size, prompt_tokens=len(prompt))
    one.reset(Request(sampler=sampler, prompt_tokens=len(prompt)))
    place = one.begin(np.array(prompt))
    for token in drafted:
        place = one.step(place, token)
    ours, theirs = (ids.tolist() for ids in one.translation.shared)
    (guess,) = one.guesses(place)
    assert guess.drawn_from is not None
    assert guess.token in ours
    assert guess.drawn_from[guess.token] > 0
    logits = np.full(size, -np.inf, dtype=np.float32)
    said = one._entries
    logits[ours] = row(tuple(said))[theirs]
    logits[list(sampling.banned_tokens)] = -np.inf
    assert guess.drawn_from.sum() == pytest.approx(1)
    assert guess.drawn_from == pytest.approx(distribution(logits, sampling).probabilities())


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
def test_what_was_written_is_not_drawn(acceptance: Any) -> None:
    """So the rules take it for certain, which is exact: it depends on the context alone."""
    rows = {}
    for seed in (1, 2):
        made = drafter("reencoding", "byte-level", "smaller", follows(DRAFTS["smaller"], TEXT))
        sampling = SamplingParams(temperature=1.0, acceptance=acceptance, seed=seed)
        sampler = Sampler(
            sampling, vocab_size=TARGETS["byte-level"].get_vocab_size(), prompt_tokens=5
        )
        made.reset(Request(sampler=sampler, prompt_tokens=5))
        context = np.array(TARGETS["byte-level"].encode(TEXT).ids[:5])
        proposal = made.propose(context, Budget(4))
        assert len(proposal) == 4
        assert proposal.probabilities is None
        rows[seed] = proposal.tokens
    assert rows[1] == rows[2]


@settings(deadline=None, max_examples=40)
@given(
    way=st.sampled_from([*WAYS]),
    name=st.sampled_from(["universal", "auto"]),
    prompts=st.lists(
        st.lists(st.integers(0, 250), min_size=1, max_size=30), min_size=1, max_size=5
    ),
    sampling=params,
    seeds=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    k=st.sampled_from([1, 4, "auto"]),
)
def test_batches_and_trees(way, name, prompts, sampling, seeds, k) -> None:
    """Each row drafts in its own part of the draft's cache; other sources draft between."""
    row = table("byte-level", TARGETS, seeds[0])
    wanted = [
        decoder("byte-level", row, None, 0)
        .generate(prompt, max_tokens=20, sampling=sampling)
        .token_ids
        for prompt in prompts
    ]
    made: Any = drafter(
        way, "byte-level", "other", table("other", DRAFTS, seeds[1], padding=2), max_batch=3
    )
    if name == "auto":
        made = make_drafter("auto", draft=made, history=History())
    batch = BatchDecoder(
        FakeEngine(row, vocab_size=TARGETS["byte-level"].get_vocab_size(), max_batch=3, trees=True),
        drafter=made,
        draft_tokens=k,
        costs=CallCosts({width: 1.0 + 0.01 * width for width in (1, 8, 16)}),
        stop_token_ids=[TARGETS["byte-level"].token_to_id(END)],
    )
    waiting = [batch.submit(prompt, max_tokens=20, sampling=sampling) for prompt in prompts]
    found = drain(batch)
    assert [tuple(ids(found[generation])) for generation in waiting] == wanted


def test_more_rows_than_the_drafts_cache_has() -> None:
    one = source("reencoding", "byte-level", "smaller", follows(DRAFTS["smaller"], TEXT))
    with pytest.raises(SpecplugError, match="the draft model's cache has 1 rows"):
        one.fork()
