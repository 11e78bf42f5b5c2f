"""From a bundle and a drafter's name to the parts of a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specplug.bundle import Bundle, Component
from specplug.drafters import (
    OF_A_BUNDLE,
    BlockSource,
    HeadSource,
    HistorySource,
    ModelDrafter,
    NgramDrafter,
    NoDrafter,
    PredictedSource,
    RecycleSource,
    Source,
    SuffixSource,
    TreeDrafter,
)
from specplug.drafters.universal import WAYS
from specplug.history import History
from specplug.spelling import Spelling
from specplug.text import Tokenizer
from specplug.translation import Translation
from specplug.tuning import read_costs
from specplug.types import (
    HIDDEN_STATES,
    BundleError,
    Drafter,
    Engine,
    EngineError,
    Int32Array,
    SpecplugError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How engines are to run; the same for target and draft."""

    engine: str | None = None
    """Name of the adapter; None: the one that the component was exported for."""
    device: str | None = None
    """For engines with several, such as ``"cuda:1"``; None: the CPU, or the engine's only one."""
    sources: tuple[Path, ...] = ()
    """Checkpoints that a component may come from, for engines that run the source itself."""
    threads: int | None = None
    """Worker threads; None: one a physical core."""
    share_threads: bool = False
    """One pool for all engines of the process; so runs a target beside its draft."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers, in order of preference; a ``device`` comes before them."""
    max_batch: int = 1
    """Rows a call can have; each has a cache of its own."""
    allow_narrow: bool = False
    """Give up the width rule: calls of one token may be faster, and the text may change."""
    beside: Engine | None = None
    """The target, for a draft that is the target itself and may share its cache."""


def open_parts(
    bundle: Bundle,
    drafter: str,
    *,
    prompt_lookup_min: int = 2,
    prompt_lookup_max: int = 16,
    history: History | None = None,
    target_engine: str | None = None,
    target_device: str | None = None,
    draft_engine: str | None = None,
    draft_device: str | None = None,
    **engine_options: Any,
) -> dict[str, Any]:
    """The constructor arguments of a decoder over a bundle.

    Args:
        bundle: opened.
        drafter: a name of :data:`specplug.drafters.DRAFTERS`.
        prompt_lookup_min: of the n-gram drafter.
        prompt_lookup_max: of the n-gram drafter.
        history: texts of earlier requests for the drafters that look there, perhaps shared with
            other decoders; None: of this decoder's own requests.
        target_engine: as in :class:`EngineOptions`, like the three that follow.
        target_device: see there.
        draft_engine: see there.
        draft_device: see there.
        engine_options: the other fields of it, for both engines.
    """
    from specplug import engines

    options = EngineOptions(**engine_options)
    if drafter == "self" and (
        bundle.manifest.draft is None or bundle.manifest.draft.layers is None
    ):
        raise BundleError(
            f"{bundle.path} holds no draft that is the target itself: export it with --self-draft, "
            "or have its layers found by specplug tune --skip-layers"
        )
    if drafter == "head" and (bundle.manifest.draft is None or bundle.manifest.draft.head is None):
        raise BundleError(
            f"{bundle.path} holds no head: export it with --draft, a folder in speculators' format"
        )
    if drafter == "universal" and (
        bundle.manifest.draft is None or bundle.manifest.draft.own_tokenizer is None
    ):
        raise BundleError(
            f"{bundle.path} holds no draft with a tokenizer of its own: export it with --draft, or "
            "use --drafter draft"
        )
    has_draft = drafter in OF_A_BUNDLE or (drafter == "auto" and bundle.manifest.draft is not None)
    if has_draft:
        check_draft(bundle)
        options = replace(options, share_threads=True)
    target = engines.load(
        bundle.path,
        bundle.manifest.target,
        replace(options, engine=target_engine, device=target_device),
    )
    lookup = {"prompt_lookup_min": prompt_lookup_min, "prompt_lookup_max": prompt_lookup_max}
    try:
        costs = read_costs(bundle, target, options.threads)
        draft = None
        if has_draft:
            draft = open_draft(
                bundle,
                replace(options, engine=draft_engine, device=draft_device, beside=target),
            )
    except SpecplugError:
        target.close()
        raise
    return {
        "target": target,
        "drafter": make_drafter(
            drafter,
            draft=draft,
            history=history,
            continuations=bundle.continuations() if drafter in ("auto", "recycle") else None,
            **lookup,
        ),
        "tokenizer": bundle.tokenizer(),
        "costs": costs,
    }


def make_drafter(
    name: str,
    *,
    draft: TreeDrafter | None = None,
    history: History | None = None,
    continuations: Int32Array | None = None,
    **lookup: int,
) -> Drafter:
    """A drafter by its name.

    Args:
        name: of :data:`specplug.drafters.DRAFTERS`.
        draft: the draft model or head, for ``"draft"`` and, if there is one, ``"auto"``.
        history: as in :func:`open_parts`.
        continuations: what token recycling begins with, i32[V, n]; None: nothing.
        lookup: arguments of the n-gram drafter.
    """
    remembered = HistorySource(history if history is not None else History())
    match name:
        case "ngram":
            return NgramDrafter(**lookup)
        case "suffix":
            return TreeDrafter(name, [SuffixSource(), remembered])
        case "recycle":
            return TreeDrafter(name, [RecycleSource(continuations)])
        case "predicted":
            return TreeDrafter(name, [PredictedSource()])
        case "draft" | "self" | "head" | "universal" if draft:
            return draft
        case "auto":
            sources: list[Source] = [
                PredictedSource(),
                SuffixSource(),
                remembered,
                RecycleSource(continuations),
            ]
            if draft:
                sources += draft.sources
            return TreeDrafter(name, sources)
    return NoDrafter()


def open_draft(bundle: Bundle, options: EngineOptions) -> TreeDrafter:
    """A bundle's draft model or head as a drafter; its target should share its threads.

    Raises:
        BundleError: it holds none.
        EngineError: it is a head, and the target's engine gives no hidden states.
    """
    from specplug import engines

    draft = check_draft(bundle)
    if draft.own_tokenizer is not None:
        way = WAYS[draft.own_tokenizer.translation]
        translation = open_translation(bundle)
        engine = engines.load(bundle.path, draft, options)
        return TreeDrafter("universal", [way(engine, translation)])
    if draft.head is None:
        return ModelDrafter(engines.load(bundle.path, draft, options))
    if options.beside is not None and HIDDEN_STATES not in options.beside.spec.hidden:
        raise EngineError(
            f"the engine {options.beside.spec.name} gives none of the hidden states that the "
            "bundle's head reads: use another engine for the target, or another drafter"
        )
    # What a head guesses changes no text, so its calls need no padding.
    engine = engines.load(bundle.path, draft, replace(options, allow_narrow=True))
    if draft.head.block is not None:
        block = BlockSource(engine, draft.head.block, bundle.head_vocabulary())
        return TreeDrafter("head", [block])
    return TreeDrafter("head", [HeadSource(engine, bundle.head_vocabulary())])


def open_translation(bundle: Bundle) -> Translation:
    """Between the tokenizers of a bundle's target and draft.

    Raises:
        BundleError: a tokenizer is missing, or of a kind that is not translated.
    """

    def spelling(tokenizer: Tokenizer | None, whose: str) -> Spelling:
        if tokenizer is None:
            raise BundleError(f"{bundle.path} holds no tokenizer of the {whose}'s own")
        try:
            return Spelling(
                tokenizer.backend,
                special_tokens=tokenizer.special_tokens,
                stop_token_ids=tokenizer.stop_token_ids,
            )
        except ValueError as error:
            raise BundleError(f"the {whose}'s tokenizer cannot be translated: {error}") from error

    return Translation(
        spelling(bundle.tokenizer(), "target"),
        spelling(bundle.draft_tokenizer(), "draft"),
        target_size=bundle.manifest.target.vocab_size,
        draft_size=check_draft(bundle).vocab_size,
    )


def check_draft(bundle: Bundle) -> Component:
    """The description of a bundle's draft model; see :func:`open_draft`."""
    if bundle.manifest.draft is None:
        raise BundleError(
            f"{bundle.path} holds no draft model: export it with --draft or --self-draft, "
            "or use --drafter ngram"
        )
    return bundle.manifest.draft
