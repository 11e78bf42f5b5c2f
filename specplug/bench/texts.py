"""Generations: every engine with every drafter on every prompt, in turn, beside plain decoding."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from specplug.bench.calls import SETTLE
from specplug.bench.machine import EnergyMeter
from specplug.bench.subjects import Subject
from specplug.bench.workload import Item
from specplug.budget import Budget
from specplug.controller import CallCosts, MeasuredLength
from specplug.costs import measure_costs
from specplug.decoder import SpeculativeDecoder
from specplug.drafters import OF_A_BUNDLE, TreeDrafter
from specplug.drafters.tree import SourceCount
from specplug.generation_options import GREEDY, DraftTokens
from specplug.opening import make_drafter, open_draft
from specplug.sampling import SamplingParams
from specplug.types import Drafter, Engine, Int64Array, Proposal

PLAIN, SYNTHETIC = "none", "synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One answer."""

    subject: Subject
    drafter: str
    item: Item
    repeat: int
    new_tokens: int
    seconds: float
    """From the request to the last token."""
    first_token_seconds: float
    decode_tokens_per_second: float
    """Tokens after the first over the time after the first."""
    gaps: tuple[float, ...]
    """Seconds between one delivery of tokens and the next; a round delivers all of its."""
    acceptance_length: float
    accepted: tuple[int, ...]
    """Drafted tokens that became text, by round."""
    undrafted: int
    """Rounds that drafted nothing."""
    counts: Mapping[str, SourceCount]
    """Of drafters that are made of sources."""
    milliseconds: Mapping[int, float]
    """What calls cost by width, as known at the end; empty where their number was fixed."""
    same_text: bool
    """As the same engine's plain decoding."""
    joules: float | None

    @property
    def rounds(self) -> int:
        """Calls of the target after the prompt's."""
        return len(self.accepted)

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time."""
        return self.new_tokens / self.seconds


class SyntheticDrafter(Drafter):
    """Drafts a known text, each token wrong with a fixed chance: engines compared at equal luck.

    Args:
        acceptance: the chance that a token is right, given that those before it are.
    """

    name = SYNTHETIC

    def __init__(self, acceptance: float) -> None:
        if not 0 <= acceptance <= 1:
            raise ValueError(f"synthetic acceptance {acceptance}: need 0 to 1")
        self._acceptance = acceptance
        self._text: Sequence[int] = ()
        self._vocab_size = self._start = 0

    def aim(self, text: Sequence[int], prompt_tokens: int, vocab_size: int) -> None:
        """Know the next generation's new tokens."""
        self._text, self._start, self._vocab_size = text, prompt_tokens, vocab_size

    def propose(self, context: Int64Array, budget: Budget) -> Proposal:
        """The coming tokens, some of them wrong; the same ones for every engine."""
        at = len(context) - self._start
        coming = self._text[at : at + budget.most]
        random = np.random.default_rng([len(context), budget.most])
        right = random.random(len(coming)) < self._acceptance
        return Proposal(
            tuple(
                token if is_right else (token + 1) % self._vocab_size
                for token, is_right in zip(coming, right, strict=True)
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TextOptions:
    """How answers are made."""

    drafters: tuple[str, ...] = (PLAIN, "ngram")
    """Plain decoding is measured in any case."""
    draft_tokens: DraftTokens = "auto"
    max_tokens: int = 128
    repeats: int = 3
    sampling: SamplingParams = GREEDY
    synthetic_acceptance: float | None = None


def measure_texts(
    engines: Mapping[Subject, Engine],
    items: Sequence[Item],
    options: TextOptions,
    advance: Callable[[], None],
) -> list[Run]:
    """Answer every prompt with every engine and drafter, so many times over.

    Raises:
        BundleError: a draft model is asked for that a bundle does not have.
    """
    meter = EnergyMeter()
    costs = {subject: measure_costs(engine) for subject, engine in engines.items()}
    drafts = {subject: _draft(subject, engine, options) for subject, engine in engines.items()}
    runs: list[Run] = []
    try:
        for repeat in range(-1, options.repeats):  # the first, of one prompt, warms up
            contenders = [
                _Contender(subject, _decoders(subject, engine, drafts, costs, options))
                for subject, engine in engines.items()
            ]
            for item in items if repeat >= 0 else items[:1]:
                for contender in contenders:
                    time.sleep(SETTLE)
                    made = _answer(contender, item, repeat, options, meter)
                    if repeat >= 0:
                        runs += made
                        advance()
    finally:
        for draft in filter(None, drafts.values()):
            draft.close()
    return runs


@dataclass(frozen=True, slots=True)
class _Contender:
    subject: Subject
    decoders: dict[str, SpeculativeDecoder]
    """By drafter; plain decoding's comes first."""


def _draft(subject: Subject, target: Engine, options: TextOptions) -> TreeDrafter | None:
    """The draft model that the drafters ask for, beside the target as in a decoder."""
    has_one = subject.bundle.manifest.draft is not None
    if {*OF_A_BUNDLE} & {*options.drafters} or ("auto" in options.drafters and has_one):
        return open_draft(subject.bundle, replace(subject.options, beside=target))
    return None


_DRAFTED = (*OF_A_BUNDLE, "auto")  # drafters that use a bundle's draft


def _decoders(
    subject: Subject,
    engine: Engine,
    drafts: Mapping[Subject, TreeDrafter | None],
    costs: Mapping[Subject, dict[int, float]],
    options: TextOptions,
) -> dict[str, SpeculativeDecoder]:
    """New ones for every repeat: what was learnt of the same prompts would be no measurement."""
    names = [PLAIN, *(name for name in options.drafters if name != PLAIN)]
    if options.synthetic_acceptance is not None:
        names.append(SYNTHETIC)
    tokenizer = subject.bundle.tokenizer()
    return {
        name: SpeculativeDecoder(
            engine,
            drafter=SyntheticDrafter(options.synthetic_acceptance or 0.0)
            if name == SYNTHETIC
            else make_drafter(name, draft=drafts[subject] if name in _DRAFTED else None),
            draft_tokens=options.draft_tokens,
            costs=CallCosts(costs[subject]),
            tokenizer=tokenizer,
        )
        for name in names
    }


def _costs(decoder: SpeculativeDecoder) -> dict[int, float]:
    if not isinstance(decoder.length, MeasuredLength):
        return {}
    return {width: 1e3 * decoder.length.costs[width] for width in _SHOWN_WIDTHS}


_SHOWN_WIDTHS = (1, 2, 4, 8, 16)


def _answer(
    contender: _Contender, item: Item, repeat: int, options: TextOptions, meter: EnergyMeter
) -> list[Run]:
    """With each drafter; plain decoding first, which the others are compared with."""
    made: list[Run] = []
    plain: list[int] = []
    for name, decoder in contender.decoders.items():
        prompt = decoder.encode(item.prompt)
        if isinstance(decoder.drafter, SyntheticDrafter):
            decoder.drafter.aim(plain, len(prompt), decoder.target.spec.vocab_size)
        energy = meter.read()
        tokens: list[int] = []
        times = [time.perf_counter()]
        for delivered in decoder.rounds(
            prompt, max_tokens=options.max_tokens, sampling=options.sampling
        ):
            tokens += [token.id for token in delivered]
            times.append(time.perf_counter())
        joules = meter.joules(energy)
        plain = plain or tokens
        made.append(
            Run(
                subject=contender.subject,
                drafter=name,
                item=item,
                repeat=repeat,
                new_tokens=len(tokens),
                seconds=times[-1] - times[0],
                first_token_seconds=times[1] - times[0],
                decode_tokens_per_second=decoder.stats.decode_tokens_per_second,
                gaps=tuple(np.diff(times[1:]).tolist()),
                acceptance_length=decoder.stats.acceptance_length,
                accepted=tuple(decoder.stats.accepted_per_round),
                undrafted=decoder.stats.drafted_per_round.count(0),
                counts=decoder.drafter.counts if isinstance(decoder.drafter, TreeDrafter) else {},
                milliseconds=_costs(decoder),
                same_text=tokens == plain,
                joules=joules,
            )
        )
    return made
