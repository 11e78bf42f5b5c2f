"""``specplug verify``: what to run before a deployment is trusted, on the machine it runs on.

Every check runs the bundle itself: its graphs, its engines, the loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from specplug import engines
from specplug.arguments import check_types, checked
from specplug.bundle import Bundle
from specplug.controller import CallCosts
from specplug.costs import measure_costs
from specplug.decoder import SpeculativeDecoder
from specplug.drafters import ModelDrafter, NgramDrafter, NoDrafter
from specplug.generation_options import DraftTokens
from specplug.law import POWER, check_law
from specplug.opening import EngineOptions, make_drafter, open_decoder
from specplug.sampling import SamplingParams
from specplug.types import BundleError, Drafter, Engine, EngineError, Int64Array
from specplug.widths import WIDEST, batch_difference, rows_of, smallest_width

DRAFT_TOKENS = (1, 4, 8)
NEW_TOKENS = 32
SEQUENCES = 6000
SAMPLING = SamplingParams(temperature=0.8, top_p=0.95)
PROMPTS = (
    "List the planets of the solar system, then repeat the list in reverse order.",
    "Fix the bug and give the whole function again: def add(a, b):\n    total = a - b\n"
    "    return total",
    "Explain in two sentences why the sky is blue.",
    'Answer in JSON with the keys "name", "age" and "city": Anna is 31 and lives in Oslo.',
)
_BATCH = 4  # rows
_ORDER_OF_SUMS = 1e-3  # of logits
_WIDE = 64  # tokens of the widest call that rows are compared in

Report = Callable[[str, float], None]
"""Told the name of the running check and the share of it that is done."""


@dataclass(frozen=True, slots=True)
class Check:
    """What became of one check."""

    name: str
    passed: bool | None
    """None: it did not apply, or something it needs was not given."""
    summary: str
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyOptions:
    """How to verify."""

    sampling: SamplingParams = SAMPLING
    """The settings that equality under sampling and the distribution are checked at."""
    source: Path | None = None
    """What the bundle was exported from."""
    sequences: int = SEQUENCES
    """Sampled for the distribution."""
    target_engine: str | None = None
    target_device: str | None = None
    """As in :class:`specplug.opening.EngineOptions`."""
    threads: int | None = None

    @property
    def sources(self) -> tuple[Path, ...]:
        """Where an engine that runs the source finds it."""
        return (self.source,) if self.source else ()

    def __post_init__(self) -> None:
        check_types(self)
        if self.sequences < 100:
            raise ValueError(f"sequences {self.sequences}: a test of the law needs at least 100")


@checked()
def verify(path: str | Path, options: VerifyOptions, report: Report) -> Iterator[Check]:
    """Yield the checks of a bundle as they are done.

    Raises:
        EngineError: a backend failed.
        MissingExtraError: a source is given, and the export extra is not installed.
        ExportError: the source cannot be read.
    """
    report("files", 0)
    try:
        bundle = Bundle.open(path)
    except BundleError as error:
        yield Check("files", False, str(error))
        return
    files = bundle.manifest.all_files()
    options.sampling.check_tokens(bundle.manifest.target.vocab_size)
    yield Check("files", True, f"{len(files)} files, all as the manifest says")
    if options.source is None:
        yield Check("source", None, "not given: --source compares the graph with it")
        yield Check("tokenizer", None, "not given: --source compares the tokenizer with it")
    else:
        from specplug.export.reproducing import compare_with_source
        from specplug.export.tokenizer_check import compare_tokenizers

        yield Check("source", *compare_with_source(bundle, options.source, report))
        report("tokenizer", 0)
        yield Check("tokenizer", *compare_tokenizers(bundle, options.source))
    yield _check_width(bundle, options, report)
    yield _check_batch(bundle, options, report)
    with open_decoder(
        SpeculativeDecoder,
        {},
        bundle,
        "draft" if bundle.manifest.draft else "none",
        target_engine=options.target_engine,
        target_device=options.target_device,
        sources=options.sources,
        threads=options.threads,
    ) as decoder:
        prompts = _prompts(decoder)
        yield _check_equality("greedy", decoder, prompts, SamplingParams(), report)
        if options.sampling.temperature == 0:
            yield Check("coupled", None, "temperature 0 asked for: nothing is drawn")
            yield Check("distribution", None, "temperature 0 asked for: nothing is drawn")
        else:
            coupled = replace(options.sampling, acceptance="coupled")
            yield _check_equality("coupled", decoder, prompts, coupled, report)
            yield _check_distribution(decoder, prompts[0], options, report)


def _check_width(bundle: Bundle, options: VerifyOptions, report: Report) -> Check:
    declared = bundle.manifest.target.min_width
    report("width", 0)
    engine = _target(bundle, options, min_width=1)
    try:
        tokens = _sample(bundle)
        measured = smallest_width(engine, tokens[: 3 * WIDEST])
        report("width", 0.5)
        wide = rows_of(engine, tokens[:_WIDE], 0)[:WIDEST]
        wide_too = np.array_equal(wide, rows_of(engine, tokens[:WIDEST], 0))
    finally:
        engine.close()
    details = {"declared": declared, "measured": measured, "wide_call_equal": wide_too}
    if measured is None or measured > declared:
        found = f"only from width {measured} on" if measured else f"at no width up to {WIDEST}"
        return Check(
            "width",
            False,
            f"the bundle promises rows that are the same from width {declared} on; on this machine "
            f"they are {found}: export the model again, on this machine",
            details,
        )
    if not wide_too:
        summary = f"a call of {_WIDE} tokens gives other rows than one of {WIDEST}"
        return Check("width", False, f"{summary}: keep draft_tokens below {WIDEST}", details)
    return Check(
        "width",
        True,
        f"rows are bit for bit the same in calls of {declared} tokens and more",
        details,
    )


def _check_batch(bundle: Bundle, options: VerifyOptions, report: Report) -> Check:
    report("batch", 0)
    try:
        engine = _target(bundle, options, max_batch=_BATCH)
    except EngineError as error:
        return Check("batch", None, f"for serving only, and not here: {error}")
    try:
        difference = batch_difference(engine, _sample(bundle)[:_WIDE])
    finally:
        engine.close()
    details = {"rows": _BATCH, "difference": difference}
    if not difference:
        summary = f"rows of {_BATCH} are bit for bit what they are alone"
    elif difference < _ORDER_OF_SUMS and not bundle.manifest.target.amplifies:
        summary = f"rows of {_BATCH} are what they are alone to {difference:.1g}: the order of sums"
    else:
        summary = f"rows of {_BATCH} differ from the same rows alone by up to {difference:.2g}"
        return Check("batch", False, f"{summary}: serve with --max-batch 1", details)
    return Check("batch", True, summary, details)


def _target(
    bundle: Bundle, options: VerifyOptions, *, max_batch: int = 1, min_width: int | None = None
) -> Engine:
    """The target, on the engine that is asked about."""
    component = bundle.manifest.target
    if min_width is not None:
        component = component.model_copy(update={"min_width": min_width})
    return engines.load(
        bundle.path,
        component,
        EngineOptions(
            engine=options.target_engine,
            device=options.target_device,
            sources=options.sources,
            threads=options.threads,
            max_batch=max_batch,
        ),
    )


def _sample(bundle: Bundle) -> Int64Array:
    """Tokens to compare rows on, at least as many as the widest call."""
    tokenizer = bundle.tokenizer()
    if tokenizer:
        tokens = np.array(tokenizer.encode("\n\n".join(PROMPTS)), dtype=np.int64)
        if len(tokens) >= _WIDE:
            return tokens
    vocab_size = bundle.manifest.target.vocab_size
    return np.random.default_rng(0).integers(0, vocab_size, size=_WIDE)


def _prompts(decoder: SpeculativeDecoder) -> list[list[int]]:
    if decoder.tokenizer:
        return [decoder.encode(prompt) for prompt in PROMPTS]
    tokens = np.random.default_rng(0).integers(0, decoder.target.spec.vocab_size, size=(4, 12))
    return [np.tile(row, 2).tolist() for row in tokens]  # so that lookup finds something


def _check_equality(
    name: str,
    decoder: SpeculativeDecoder,
    prompts: Sequence[Sequence[int]],
    sampling: SamplingParams,
    report: Report,
) -> Check:
    """Every drafter and draft length against plain decoding, over one target."""
    drafters: list[Drafter] = [NgramDrafter()]
    if not isinstance(decoder.drafter, NoDrafter):
        drafters.append(decoder.drafter)
    ways: list[tuple[Drafter, DraftTokens]] = [(each, k) for each in drafters for k in DRAFT_TOKENS]
    ways.append((make_drafter("auto"), "auto"))
    costs = measure_costs(decoder.target)
    done, whole = 0, len(prompts) * (1 + len(ways))

    def answer(prompt: Sequence[int], drafter: Drafter | None, k: DraftTokens) -> tuple[int, ...]:
        nonlocal done
        one = SpeculativeDecoder(
            decoder.target,
            drafter=drafter,
            draft_tokens=k,
            costs=CallCosts(costs),
            tokenizer=decoder.tokenizer,
        )
        limit = decoder.target.spec.context_limit
        found = one.generate(
            list(prompt[: limit // 2]), max_tokens=NEW_TOKENS, sampling=sampling
        ).token_ids
        done += 1
        report(name, done / whole)
        return found

    plain = [answer(prompt, None, 0) for prompt in prompts]
    differing = [
        {"prompt": i, "drafter": drafter.name, "draft_tokens": k, "at": _first(plain[i], made)}
        for drafter, k in ways
        for i, prompt in enumerate(prompts)
        if (made := answer(prompt, drafter, k)) != plain[i]
    ]
    compared = len(ways) * len(prompts)
    used = [*dict.fromkeys(drafter.name for drafter, _ in ways)]
    lengths = [*dict.fromkeys(k for _, k in ways)]
    details = {
        "answers": compared,
        "tokens": sum(map(len, plain)) * len(ways),
        "drafters": used,
        "draft_tokens": lengths,
        "differing": differing,
    }
    if differing:
        one = differing[0]
        return Check(
            name,
            False,
            f"{len(differing)} of {compared} answers are not plain decoding's, first at token "
            f"{one['at']} with drafter {one['drafter']}, draft_tokens {one['draft_tokens']}",
            details,
        )
    return Check(
        name,
        True,
        f"{compared} answers equal plain decoding's, token for token ({', '.join(used)}; "
        f"{', '.join(map(str, lengths))} drafted)",
        details,
    )


def _first(one: Sequence[int], other: Sequence[int]) -> int:
    """Where two sequences part."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))


def _check_distribution(
    decoder: SpeculativeDecoder, prompt: Sequence[int], options: VerifyOptions, report: Report
) -> Check:
    drafter = decoder.drafter
    draft: Engine | None = drafter.engine if isinstance(drafter, ModelDrafter) else None
    law = check_law(
        decoder.target,
        draft,
        _with_answer(decoder, prompt),
        options.sampling,
        sequences=options.sequences,
        report=lambda done: report("distribution", done),
    )
    rule = options.sampling.acceptance
    details = {
        **asdict(law),
        "acceptance": rule,
        "draft": "bundle" if draft else "flattened target",
    }
    if law.impossible:
        summary = f"{rule} sampled the tokens {law.impossible}, which the target never gives"
    else:
        summary = (
            f"{rule}, {law.sequences} sequences: chi-squared {law.statistic:.1f} in {law.bins} "
            f"bins, p = {law.p_value:.2g}; an error of {law.detectable:.1%} (total variation) "
            f"would be found with {POWER:.0%}"
        )
    return Check("distribution", law.passed, summary, details)


def _with_answer(decoder: SpeculativeDecoder, prompt: Sequence[int]) -> list[int]:
    """The prompt and what the target says first."""
    limit = decoder.target.spec.context_limit
    short = list(prompt[: limit // 2])
    plain = SpeculativeDecoder(decoder.target)
    return [*short, *plain.generate(short, max_tokens=1).token_ids]
