"""Options of a generation mean what transformers means by them, whatever is drafted."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation import logits_process as reference

from specplug import (
    BatchDecoder,
    ModelDrafter,
    NgramDrafter,
    NoDrafter,
    SamplingParams,
    SpeculativeDecoder,
)
from specplug.engines.fake import FakeEngine
from tests_support.batching import drain
from tests_support.languages import language

VOCAB = 8
OWN_STOP = 7


def decoder(seed: int, drafter: str = "none", k: int = 0, kind: Any = SpeculativeDecoder) -> Any:
    def engine(of: int, **more: Any) -> FakeEngine:
        return FakeEngine(language(of, vocab_size=VOCAB), vocab_size=VOCAB, **more)

    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(engine(seed + 1)),
        "same": lambda: ModelDrafter(engine(seed)),
    }[drafter]()
    more = {"max_batch": 3} if kind is BatchDecoder else {}
    target = engine(seed, **more)
    return kind(target, drafter=made, draft_tokens=k, stop_token_ids=[OWN_STOP])


TOKENS = st.integers(0, VOCAB - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 1.0]),
    typical_p=st.sampled_from([1.0, 0.8]),
    bad_words_ids=st.lists(st.lists(TOKENS, min_size=2, max_size=3), max_size=6),
    allowed_token_ids=st.one_of(
        st.none(), st.sets(TOKENS, min_size=4).map(sorted)
    ),
    seed=st.integers(0, 1000),
)  # fmt: skip
OPTIONS = st.fixed_dictionaries(
    {"sampling": PARAMS, "max_tokens": st.integers(6, 24)},
    optional={
        "min_tokens": st.integers(0, 6),
        "ignore_eos": st.booleans(),
        "stop_token_ids": st.lists(TOKENS, max_size=2),
    },
)
PROMPTS = st.lists(TOKENS, min_size=1, max_size=12)


def by_transformers(seed: int, prompt: list[int], options: dict[str, Any]) -> list[int]:
    """Greedy tokens: rows of the language through transformers' processors."""
    params = options["sampling"]
    row = language(seed, vocab_size=VOCAB)
    ends = {*options.get("stop_token_ids", ())}
    if not options.get("ignore_eos"):
        ends.add(OWN_STOP)
    processors: list[Any] = []
    if params.bad_words_ids:
        processors.append(
            reference.NoBadWordsLogitsProcessor([list(w) for w in params.bad_words_ids])
        )
    if options.get("min_tokens") and ends:
        processors.append(
            reference.MinNewTokensLengthLogitsProcessor(
                len(prompt), options["min_tokens"], torch.tensor(sorted(ends))
            )
        )
    if params.allowed_token_ids is not None:
        rest = sorted({*range(VOCAB)} - {*params.allowed_token_ids})
        if rest:
            processors.append(reference.SuppressTokensLogitsProcessor(rest))
    tokens = list(prompt)
    while len(tokens) < len(prompt) + options["max_tokens"]:
        scores = torch.from_numpy(np.array(row(tuple(tokens)), dtype=np.float32))[None]
        for processor in processors:
            scores = processor(torch.tensor([tokens]), scores)
        if not bool(torch.isfinite(scores).any()):
            raise ValueError("nothing is left")
        tokens.append(int(scores.argmax()))
        if tokens[-1] in ends:
            break
    return tokens[len(prompt) :]


def outcome(call: Any) -> Any:
    try:
        return call()
    except ValueError as error:
        return type(error)


@settings(deadline=None, max_examples=150)
@given(seed=st.integers(0, 500), prompt=PROMPTS, options=OPTIONS, k=st.integers(1, 6))
def test_every_drafter_gives_plain_decodings_text_and_greedy_is_transformers(
    seed: int, prompt: list[int], options: dict[str, Any], k: int
) -> None:
    def answer(drafter: str, k: int) -> Any:
        return outcome(lambda: decoder(seed, drafter, k).generate(prompt, **options).token_ids)

    expected = answer("none", 0)
    if options["sampling"].temperature == 0:
        theirs = outcome(lambda: tuple(by_transformers(seed, prompt, options)))
        assert expected == theirs
    for drafter in ("ngram", "draft", "same"):
        assert answer(drafter, k) == expected, drafter


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 500),
    asked=st.lists(st.tuples(PROMPTS, OPTIONS), min_size=1, max_size=4),
    k=st.integers(1, 6),
)
def test_in_a_batch_each_row_keeps_to_its_own_options(
    seed: int, asked: list[tuple[list[int], dict[str, Any]]], k: int
) -> None:
    batch = decoder(seed, "ngram", k, BatchDecoder)
    submitted = [outcome(lambda: batch.submit(prompt, **options)) for prompt, options in asked]  # noqa: B023
    made = drain(batch)
    for generation, (prompt, options) in zip(submitted, asked, strict=True):
        alone = outcome(lambda: decoder(seed).generate(prompt, **options).token_ids)  # noqa: B023
        if generation is ValueError:
            assert alone is ValueError
        elif generation.error is not None:
            assert isinstance(generation.error, ValueError)
            assert alone is ValueError
        else:
            assert tuple(token.id for token in made[generation]) == alone
