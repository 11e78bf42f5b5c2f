"""Options of a generation mean what transformers means by them, whatever is drafted."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
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
    Tokenizer,
)
from specplug.engines.fake import FakeEngine
from specplug.opening import make_drafter
from specplug.sampler import Sampler
from specplug.types import Drafter, Proposal
from tests_support.batching import drain
from tests_support.languages import language
from tests_support.tiny import byte_tokenizer

VOCAB = 8
OWN_STOP = 7


def decoder(
    seed: int,
    drafter: str = "none",
    k: int = 0,
    kind: Any = SpeculativeDecoder,
    trees: bool = False,
) -> Any:
    def engine(of: int, **more: Any) -> FakeEngine:
        return FakeEngine(language(of, vocab_size=VOCAB), vocab_size=VOCAB, **more)

    made = {
        "none": NoDrafter,
        "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
        "draft": lambda: ModelDrafter(engine(seed + 1)),
        "same": lambda: ModelDrafter(engine(seed)),
        "recycle": lambda: make_drafter("recycle"),
        "auto": lambda: make_drafter("auto"),
    }[drafter]()
    more = {"max_batch": 3} if kind is BatchDecoder else {}
    target = engine(seed, trees=trees, **more)
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
@given(
    seed=st.integers(0, 500),
    prompt=PROMPTS,
    options=OPTIONS,
    k=st.integers(1, 6),
    trees=st.booleans(),
)
def test_every_drafter_gives_plain_decodings_text_and_greedy_is_transformers(
    seed: int, prompt: list[int], options: dict[str, Any], k: int, trees: bool
) -> None:
    def answer(drafter: str, k: int) -> Any:
        made = decoder(seed, drafter, k, trees=trees)
        return outcome(lambda: made.generate(prompt, **options).token_ids)

    expected = answer("none", 0)
    if options["sampling"].temperature == 0:
        theirs = outcome(lambda: tuple(by_transformers(seed, prompt, options)))
        assert expected == theirs
    for drafter in ("ngram", "draft", "same", "recycle", "auto"):
        assert answer(drafter, k) == expected, drafter


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 500),
    prompt=PROMPTS,
    options=OPTIONS,
    drafter=st.sampled_from(["ngram", "draft", "same"]),
    k=st.integers(1, 6),
)
def test_other_rules_keep_to_the_options_too(
    acceptance: Any, seed: int, prompt: list[int], options: dict[str, Any], drafter: str, k: int
) -> None:
    params = replace(options["sampling"], temperature=1.0, acceptance=acceptance)
    asked = options | {"sampling": params}
    found = outcome(lambda: decoder(seed, drafter, k).generate(prompt, **asked))
    if found is ValueError:
        return
    text = [*prompt, *found.token_ids]
    ends = {*options.get("stop_token_ids", ()), *([] if options.get("ignore_eos") else [OWN_STOP])}
    for place, token in enumerate(found.token_ids):
        before = text[: len(prompt) + place]
        assert params.allowed_token_ids is None or token in params.allowed_token_ids
        assert not any(
            token == word[-1] and before[len(before) - len(word) + 1 :] == list(word[:-1])
            for word in params.bad_words_ids
        )
        last = place == len(found.token_ids) - 1
        assert token not in ends or (last and place >= options.get("min_tokens", 0))


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


# --- rows: bit for bit transformers' ----------------------------------------------------------


@given(
    row=st.lists(st.floats(-9, 9, width=32), min_size=VOCAB, max_size=VOCAB),
    prompt=PROMPTS,
    answer=st.lists(TOKENS, max_size=6),
    words=st.lists(st.lists(TOKENS, min_size=1, max_size=4), max_size=5),
    banned=st.sets(TOKENS, max_size=3),
    allowed=st.none() | st.sets(TOKENS, min_size=1),
    min_tokens=st.integers(0, 5),
    ends=st.sets(TOKENS, max_size=2),
)
def test_rows_are_transformers(
    row: list[float],
    prompt: list[int],
    answer: list[int],
    words: list[list[int]],
    banned: set[int],
    allowed: set[int] | None,
    min_tokens: int,
    ends: set[int],
) -> None:
    answer = [token for token in answer if token not in ends]  # which would have ended it
    try:
        params = SamplingParams(
            bad_words_ids=words,
            banned_tokens=sorted(banned),
            allowed_token_ids=None if allowed is None else sorted(allowed),
        )
    except ValueError:
        assert allowed is not None
        assert allowed <= banned | {word[0] for word in words if len(word) == 1}
        return
    sampler = Sampler(
        params,
        vocab_size=VOCAB,
        prompt_tokens=len(prompt),
        min_tokens=min_tokens,
        stop_token_ids=ends,
    )
    logits = np.array(row, dtype=np.float32)
    tokens = [*prompt, *answer]
    processors: list[Any] = []
    if words:
        processors.append(reference.NoBadWordsLogitsProcessor(words))
    if banned:
        processors.append(reference.SuppressTokensLogitsProcessor(sorted(banned)))
    if allowed is not None:
        processors.append(reference.PrefixConstrainedLogitsProcessor(lambda *_: sorted(allowed), 1))
    if ends:
        processors.append(
            reference.MinNewTokensLengthLogitsProcessor(
                len(prompt), min_tokens, torch.tensor(sorted(ends))
            )
        )
    expected = torch.from_numpy(logits.copy())[None]
    for processor in processors:
        expected = processor(torch.tensor([tokens]), expected)
    try:
        found = sampler._shaped(logits, np.array(tokens, dtype=np.int64))
    except ValueError:  # min_tokens left nothing: told at once
        assert not torch.isfinite(expected).any()
        return
    np.testing.assert_array_equal(found, expected[0].numpy())


# --- text -------------------------------------------------------------------------------------


class Scripted:
    """A target that says given tokens, and then its stop token."""

    def __init__(self, tokenizer: Tokenizer, text: str, prompt: str) -> None:
        self.tokenizer = tokenizer
        self.prompt = tokenizer.encode(prompt)
        self.tokens = [*tokenizer.encode(text), *tokenizer.stop_token_ids]

    def engine(self) -> FakeEngine:
        size = self.tokenizer.backend.get_vocab_size()

        def row(prefix: tuple[int, ...]) -> np.ndarray:
            made = np.zeros(size)
            place = len(prefix) - len(self.prompt)
            if 0 <= place < len(self.tokens):
                made[self.tokens[place]] = 1
            return made

        return FakeEngine(row, vocab_size=size)

    def answer(self, drafter: str = "none", k: int = 0, **options: Any) -> Any:
        made: Any = {
            "none": NoDrafter,
            "ngram": lambda: NgramDrafter(prompt_lookup_min=1),
            "same": lambda: ModelDrafter(self.engine()),
        }[drafter]()
        decoder = SpeculativeDecoder(
            self.engine(), drafter=made, draft_tokens=k, tokenizer=self.tokenizer
        )
        return decoder.generate(self.prompt, **options)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("options") / "tokenizer.json"
    made = byte_tokenizer()
    made.save(str(path))
    return Tokenizer(path, stop_token_ids=[made.token_to_id("<|end|>")])


@settings(deadline=None, max_examples=100)
@given(
    text=st.text("ab", min_size=1, max_size=14),
    stop=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=2),
    min_tokens=st.integers(0, 16),
    include=st.booleans(),
    k=st.integers(1, 6),
)
def test_stop_strings_end_nothing_before_min_tokens(
    tokenizer: Tokenizer, text: str, stop: list[str], min_tokens: int, include: bool, k: int
) -> None:
    """A token is a character here, so positions of characters are those of tokens."""
    ends = [
        (end, len(one))
        for end in range(min_tokens + 1, len(text) + 1)
        for one in stop
        if text[:end].endswith(one)
    ]
    expected = text
    if ends:
        end = min(ends)[0]
        longest = max(length for at, length in ends if at == end)
        expected = text[: end if include else end - longest]
    script = Scripted(tokenizer, text, "ab")
    options: dict[str, Any] = {
        "stop": stop,
        "min_tokens": min(min_tokens, len(text)),
        "include_stop_str_in_output": include,
        "max_tokens": len(text) + 1,
    }
    if min_tokens > len(text):
        options["min_tokens"] = len(text)
    for drafter, drafted in (("none", 0), ("ngram", k), ("same", k)):
        found = script.answer(drafter, drafted, **options)
        if drafter == "none":
            tokens = found.token_ids
        assert found.token_ids == tokens  # nothing after the token that ends the text
        shown = found.text.removesuffix("<|end|>")  # asked for, and shown as special tokens are
        assert shown == expected, drafter
        assert found.finish_reason == "stop"


def test_what_is_shown_of_the_end(tokenizer: Tokenizer) -> None:
    script = Scripted(tokenizer, "ab cab", "q")
    [c] = tokenizer.encode("c")
    for drafter, k in (("none", 0), ("same", 4)):
        ask = lambda **options: script.answer(drafter, k, max_tokens=9, **options).text  # noqa: B023, E731
        assert ask() == "ab cab"
        assert ask(skip_special_tokens=False) == "ab cab"  # a stop token is no part of the answer
        assert ask(skip_special_tokens=False, include_stop_str_in_output=True) == "ab cab<|end|>"
        assert ask(stop_token_ids=[c]) == "ab "
        assert ask(stop_token_ids=[c], include_stop_str_in_output=True) == "ab c"
        assert ask(stop=" c") == "ab"
        assert ask(stop=" c", include_stop_str_in_output=True) == "ab c"
        assert ask(ignore_eos=True, skip_special_tokens=False).startswith("ab cab<|end|>")


@pytest.mark.parametrize(("drafter", "k"), [("none", 0), ("ngram", 5), ("same", 5)])
def test_bad_words_are_not_completed(tokenizer: Tokenizer, drafter: str, k: int) -> None:
    script = Scripted(tokenizer, "so bad, bad", "bad ba")
    assert "bad" in script.answer(drafter, k, max_tokens=11).text
    found = script.answer(drafter, k, max_tokens=11, bad_words=["bad"])
    assert "bad" not in found.text
    assert found.text.startswith("so ba")
    # They may begin in the prompt, as with transformers.
    begun = Scripted(tokenizer, "d", "ba").answer(drafter, k, max_tokens=1, bad_words=["bad"])
    assert begun.text != "d"


def test_prompt_logprobs_are_those_of_echo(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("so it is")
    size = tokenizer.backend.get_vocab_size()
    kinds = (SpeculativeDecoder, BatchDecoder)
    for kind in kinds:
        engine = FakeEngine(language(3, vocab_size=size), vocab_size=size)
        made: Any = kind(engine, tokenizer=tokenizer)

        def ask(made: Any = made, kind: Any = kind, **options: Any) -> tuple[list[Any], Any]:
            if kind is SpeculativeDecoder:
                found = made.generate(prompt, max_tokens=3, **options)
                return [token.logprobs for token in found.tokens], found.prompt_logprobs
            generation = made.submit(prompt, max_tokens=3, **options)
            tokens = drain(made)[generation]
            return [token.logprobs for token in tokens], generation.prompt_logprobs

        echoed, none = ask(echo=True, logprobs=4)
        assert none is None
        own, theirs = ask(prompt_logprobs=4)
        assert own == [None] * 3
        assert list(theirs) == echoed[: len(prompt)]
        assert theirs[0] is None
        own, both = ask(prompt_logprobs=1, logprobs=2, echo=True)
        assert [len(one.top) for one in own[1:]] == [2] * (len(prompt) + 2)
        assert [one.top for one in both[1:]] == [one.top[:1] for one in theirs[1:]]
        chosen = ask(prompt_logprobs=0)[1]
        assert [one.chosen for one in chosen[1:]] == [one.chosen for one in theirs[1:]]
        assert not any(one.top for one in chosen[1:])


# --- what contradicts -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ({"allowed_token_ids": []}, {}, "allowed_token_ids: it is empty"),
        ({"allowed_token_ids": [1], "banned_tokens": [1]}, {}, "allowed_token_ids: none of them"),
        ({"allowed_token_ids": [1], "bad_words_ids": [[1]]}, {}, "allowed_token_ids: none of them"),
        ({"allowed_token_ids": [256]}, {"min_tokens": 1}, "allowed_token_ids: none of them"),
        ({"allowed_token_ids": [999]}, {}, "allowed_token_ids: token id 999 is not in"),
        ({"bad_words_ids": [[]]}, {}, "bad_words_ids: each must be a sequence"),
        ({"bad_words_ids": [[1, 999]]}, {}, "bad_words_ids: token id 999 is not in"),
        ({"forced_tokens": {0: 1}, "banned_tokens": [1]}, {}, "token 1 at 0 is in banned_tokens"),
        ({"forced_tokens": {0: 1}, "allowed_token_ids": [2]}, {}, "is not in allowed_token_ids"),
        ({"forced_tokens": {1: 256}}, {"min_tokens": 2}, "token 256 at 1 ends the answer before"),
        ({"choice": ["a"], "regex": "a"}, {}, "regex and choice exclude one another"),
        ({"grammar": "start: /a/", "json_schema": True}, {}, "json_schema and grammar exclude"),
        ({"json_object": True, "json_schema": True}, {}, "json_schema and json_object exclude"),
        ({"choice": []}, {}, "choice"),
        ({"regex": "a"}, {"ignore_eos": True}, "ignore_eos with regex"),
        ({"regex": "a", "allowed_token_ids": [64]}, {}, "allowed_token_ids or banned_tokens with"),
        (
            {"regex": "a", "banned_tokens": [256]},
            {},
            "allowed_token_ids or banned_tokens",
        ),
        ({}, {"min_tokens": 6}, r"min_tokens 6: it must be in \[0, 5\]"),
        ({}, {"min_tokens": -1}, "min_tokens -1"),
        ({}, {"stop_token_ids": [999]}, "stop_token_ids: token id 999 is not in"),
        ({}, {"bad_words": [" "]}, "bad_words ' ': a word has"),
        ({}, {"bad_words": "bad"}, "bad_words"),
        ({}, {"prompt_logprobs": -1}, "prompt_logprobs -1"),
    ],
)
def test_contradictions_are_refused_before_any_work(
    tokenizer: Tokenizer, params: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    size = tokenizer.backend.get_vocab_size()
    engine = FakeEngine(language(0, vocab_size=size), vocab_size=size)
    made = SpeculativeDecoder(engine, tokenizer=tokenizer)
    with pytest.raises(ValueError, match=message):
        made.generate([1], max_tokens=5, sampling=SamplingParams(**params), **options)
    assert not engine.steps


def test_words_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="bad_words 'bad': words need a tokenizer"):
        decoder(1).generate([1], bad_words=["bad"])


@pytest.mark.parametrize(("drafter", "k"), [("none", 0), ("ngram", 5), ("same", 5)])
def test_a_grammar_that_ends_too_early_is_told(tokenizer: Tokenizer, drafter: str, k: int) -> None:
    script = Scripted(tokenizer, "aaaa", "aaaa")
    params = SamplingParams(regex="a{2,3}")
    assert script.answer(drafter, k, sampling=params, min_tokens=3).text == "aaa"
    with pytest.raises(ValueError, match="min_tokens 4: after 3 tokens nothing but"):
        script.answer(drafter, k, sampling=params, min_tokens=4)


class Reciting(Drafter):
    """Proposes a fixed continuation of any context."""

    name = "reciting"

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def propose(self, context: Any, budget: Any) -> Proposal:
        return Proposal(tuple(self.tokens[: budget.most]))


@pytest.mark.parametrize("acceptance", ["coupled", "rejection", "block"])
def test_drafts_that_nothing_may_follow_end_no_answer(acceptance: Any) -> None:
    """Every token once, the stop token last at the latest: any answer can go on until it ends."""
    params = SamplingParams(temperature=1, no_repeat_ngram=1, seed=1, acceptance=acceptance)
    target = FakeEngine(language(0, vocab_size=4), vocab_size=4)
    texts = set()
    for drafted in itertools.permutations(range(4), 3):
        made = SpeculativeDecoder(
            target, drafter=Reciting([*drafted]), draft_tokens=3, stop_token_ids=[3]
        )
        for sample in range(20):
            found = made.generate([0], sampling=params, sample=sample, max_tokens=9)
            assert found.finish_reason == "stop"
            texts.add(found.token_ids)
    assert len(texts) >= 4  # of 3, 13, 23, 123, 213
