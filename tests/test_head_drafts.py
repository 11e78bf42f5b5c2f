"""Drafts of learned heads: what they guess is what the module says, and the text stays exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specplug import SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.bundle import Bundle
from specplug.drafters import HeadSource
from specplug.engines.contract import assert_close
from specplug.engines.host import HostScores
from specplug.export.source import Source
from specplug.export.speculators import open_head
from specplug.opening import open_parts
from specplug.types import HIDDEN_STATES
from tests_support.batching import drain, ids
from tests_support.drafting import request
from tests_support.heads import WRITTEN, expected_logits, features_of, own_text

PROMPT = list(b"the quick brown fox jumps over the lazy dog. ")
LONG = PROMPT * 8  # longer than a piece of reading
GREEDY = SamplingParams()
COUPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=4)
PENALISED = SamplingParams(repetition_penalty=1.3)


class Recording(HeadSource):
    """Notes what it guesses from."""

    def guesses(self, place: tuple[int, ...]) -> Any:
        found = super().guesses(place)
        if found:
            noted = self._context.copy(), list(place), self._logits[place].copy()
            self.noted = [*getattr(self, "noted", []), noted]
        return found


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, COUPLED])
@pytest.mark.parametrize("which", ["the library's", "accepted"])
def test_every_guess_is_what_the_head_says(
    which: str,
    sampling: SamplingParams,
    branching: bool,
    head_bundles: dict[str, Path],
    learned: tuple[Path, list[list[int]]],
    head_source: Source,
) -> None:
    """Over rounds, rejections and trees: the module, run anew over the text, gives its logits."""
    bundle, folder, prompt = head_bundles["fp32-ort"], WRITTEN / "llama", LONG[:300]
    if which == "accepted":
        bundle, folder, prompt = learned[0], learned[0].parent / "head", learned[1][0]
    head, model = open_head(folder, head_source).head, head_source.reference()
    with SpeculativeDecoder(**open_parts(Bundle.open(bundle), "head"), draft_tokens=6) as decoder:
        decoder.stop_token_ids = frozenset()
        (opened,) = decoder.drafter.sources  # type: ignore[attr-defined]
        recording = Recording(opened.engine, opened._vocabulary)
        decoder.drafter.sources = [recording]  # type: ignore[attr-defined]
        decoder._trees = branching
        result = decoder.generate(prompt, max_tokens=24, sampling=sampling)
    assert len(recording.noted) > 20
    assert result.stats.accepted > 9 or which != "accepted" or sampling is COUPLED
    features = features_of(model, recording.noted[-1][0].tolist(), head.shape.layers)
    first = max(len(prompt) - 256, 0)  # what was said earlier it does not read
    for context, drafted, logits in recording.noted:
        wanted = expected_logits(head, features[:, first:], context[first:], drafted)
        assert_close(logits, wanted)


def test_a_prompt_whose_beginning_was_known(
    head_bundles: dict[str, Path], head_source: Source
) -> None:
    """The head's context begins where hidden states do."""
    head, model = open_head(WRITTEN / "llama", head_source).head, head_source.reference()
    tokens = np.array(PROMPT[:30])
    features = features_of(model, tokens.tolist(), head.shape.layers)
    with SpeculativeDecoder.from_bundle(head_bundles["fp32-ort"], drafter="head") as decoder:
        (opened,) = decoder.drafter.sources  # type: ignore[attr-defined]
        recording = Recording(opened.engine, opened._vocabulary)
        recording.reset(request(260))
        for start, stop in ((12, 20), (20, 29)):
            states = features[:, start:stop].numpy()
            scores = HostScores(np.zeros((1, 1, 260), dtype=np.float32), {HIDDEN_STATES: states})
            recording.observe(start, tokens[start:stop].tolist(), scores)
        assert recording.guesses(recording.begin(tokens))
        assert recording.guesses((5,))
        recording.observe(29, [int(tokens[29])], scores)  # the context below ends elsewhere
        assert not recording.guesses(recording.begin(tokens[:28]))
    for _, drafted, logits in recording.noted:
        wanted = expected_logits(head, features[:, 12:], tokens[12:], drafted)
        assert_close(logits, wanted)


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED, COUPLED], ids=["greedy", "pen", "coupled"])
@pytest.mark.parametrize("name", ["fp32-ort", "w8a8-ort", "fp16-standard"])
def test_text_is_plain_decodings(
    name: str, sampling: SamplingParams, head_bundles: dict[str, Path]
) -> None:
    with SpeculativeDecoder.from_bundle(head_bundles[name], drafter="none") as plain:
        wanted = plain.generate(PROMPT, max_tokens=40, sampling=sampling)
    for drafter, tokens in (("head", 1), ("head", 5), ("draft", 3), ("auto", 8), ("auto", "auto")):
        with SpeculativeDecoder.from_bundle(
            head_bundles[name], drafter=drafter, draft_tokens=tokens
        ) as decoder:
            found = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
            again = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
        assert found.token_ids == again.token_ids == wanted.token_ids, (drafter, tokens)
        assert found.stats.drafted or tokens == "auto"


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
def test_other_rules_know_what_was_drawn(acceptance: Any, head_bundles: dict[str, Path]) -> None:
    sampling = SamplingParams(temperature=1.0, seed=2, acceptance=acceptance)
    with SpeculativeDecoder.from_bundle(
        head_bundles["fp32-ort"], drafter="head", draft_tokens=4
    ) as decoder:
        rows = []
        propose = decoder.drafter.propose

        def noting(*given: Any) -> Any:
            made = propose(*given)
            rows.extend(zip(made.tokens, made.probabilities or (), strict=False))
            return made

        decoder.drafter.propose = noting  # type: ignore[method-assign]
        assert decoder.generate(PROMPT, max_tokens=40, sampling=sampling).stats.drafted
        vocabulary = set(decoder.drafter.sources[0]._vocabulary.tolist())  # type: ignore[attr-defined]
    assert rows
    for token, row in rows:
        assert row.shape == (260,)
        assert row.sum() == pytest.approx(1)
        assert row[token] > 0
        assert set(np.flatnonzero(row).tolist()) <= vocabulary


def test_tokens_beyond_the_heads_are_not_drafted(head_bundles: dict[str, Path]) -> None:
    """Where only tokens may come that the head does not know, it is silent."""
    known = Bundle.open(head_bundles["fp32-ort"]).head_vocabulary()
    assert known is not None
    for sampling in (
        SamplingParams(banned_tokens=tuple(known.tolist())),
        SamplingParams(temperature=1.0, banned_tokens=tuple(known.tolist())),
        SamplingParams(
            temperature=1.0, banned_tokens=tuple(known.tolist()), acceptance="rejection"
        ),
    ):
        with SpeculativeDecoder.from_bundle(
            head_bundles["fp32-ort"], drafter="head", draft_tokens=4
        ) as decoder:
            result = decoder.generate(PROMPT, max_tokens=12, sampling=sampling)
        assert not result.stats.drafted
        assert not {*result.token_ids} & {*known.tolist()}


@pytest.mark.parametrize("sampling", [GREEDY, COUPLED])
def test_batches(sampling: SamplingParams, head_bundles: dict[str, Path]) -> None:
    """Each row's head reads its own row; prompts that are known begin in the middle."""
    prompts = [LONG[:200], LONG[:200], PROMPT, LONG[7:90], LONG[:199]]
    with SpeculativeDecoder.from_bundle(head_bundles["fp32-ort"], drafter="none") as plain:
        wanted = [plain.generate(p, max_tokens=30, sampling=sampling).token_ids for p in prompts]
    with BatchDecoder.from_bundle(
        head_bundles["fp32-ort"], drafter="head", draft_tokens=3, max_batch=3
    ) as decoder:
        waiting = [decoder.submit(p, max_tokens=30, sampling=sampling) for p in prompts]
        found = drain(decoder)
    assert [tuple(ids(found[generation])) for generation in waiting] == wanted
    assert all(generation.stats.drafted for generation in waiting)
    assert waiting[4].cached_tokens == 192


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("length", [200, 256, 257])
def test_a_known_beginning_is_drafted_from_as_one_that_is_read(
    length: int, branching: bool, head_bundles: dict[str, Path]
) -> None:
    """The same entries, so the same proposals; also where it was known to the one before."""
    prompt = LONG[:length]

    def drafts(*before: list[int]) -> tuple[list[Any], int]:
        with BatchDecoder.from_bundle(
            head_bundles["fp32-ort"], drafter="head", draft_tokens=4, max_batch=1
        ) as decoder:
            decoder.stop_token_ids = frozenset()
            decoder._trees = branching
            for earlier in before:  # without drafts: of those it would learn
                decoder.submit(earlier, max_tokens=1, speculation=False)
                while not decoder.idle:
                    decoder.step()
            proposed = []
            propose = decoder.drafter.propose

            def noting(*given: Any) -> Any:
                made = propose(*given)
                proposed.append(made)
                return made

            decoder.drafter.propose = noting  # type: ignore[method-assign]
            generation = decoder.submit(prompt, max_tokens=20)
            while not decoder.idle:
                decoder.step()
        return proposed, generation.cached_tokens

    unread, known = drafts()
    assert known == 0
    assert sum(map(len, unread)) > 30
    beginning = [*prompt[:140], 1]
    for before in ([prompt], [beginning], [beginning, prompt]):
        found, known = drafts(*before)
        assert known == (128 if before == [beginning] else (length - 1) // 64 * 64)
        for again, first in zip(found, unread, strict=True):
            assert again.tokens == first.tokens
            assert again.parents == first.parents
            assert again.reaches == pytest.approx(first.reaches, rel=1e-3)


def test_target_on_pytorch(head_bundles: dict[str, Path], head_target: Path) -> None:
    """The head stays on its own engine."""
    texts, accepted = [], []
    for options in ({}, {"target_engine": "pytorch", "sources": (head_target,)}):
        with SpeculativeDecoder.from_bundle(
            head_bundles["fp32-ort"], drafter="head", draft_tokens=4, **options
        ) as decoder:
            result = decoder.generate(PROMPT, max_tokens=30, sampling=COUPLED)
        texts.append(result.token_ids)
        accepted.append(result.stats.accepted_per_round)
    assert texts[0] == texts[1]
    assert accepted[0] == accepted[1]


@pytest.mark.parametrize("trees", [False, True])
def test_a_head_that_learnt_the_target_is_accepted(
    trees: bool, learned: tuple[Path, list[list[int]]], head_model: Any
) -> None:
    bundle, prompts = learned
    drafted = accepted = rounds = 0
    with SpeculativeDecoder.from_bundle(bundle, drafter="head", draft_tokens=3) as decoder:
        decoder.stop_token_ids = frozenset()
        decoder._trees = trees
        for prompt in prompts:
            result = decoder.generate(prompt, max_tokens=40)
            assert [*prompt, *result.token_ids] == own_text(head_model, prompt, 40)
            drafted += result.stats.drafted
            accepted += result.stats.accepted
            rounds += len(result.stats.drafted_per_round)
    assert 1 + accepted / rounds > 1.5


def test_auto_drafts_with_it(learned: tuple[Path, list[list[int]]]) -> None:
    bundle, prompts = learned
    with SpeculativeDecoder.from_bundle(bundle, drafter="auto", draft_tokens=3) as decoder:
        decoder.generate(prompts[0], max_tokens=40)
        counts = decoder.drafter.counts  # type: ignore[attr-defined]
    assert counts["head"].accepted > 5
