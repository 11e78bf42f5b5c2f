"""From a bundle and a drafter's name to the parts of a decoder."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypedDict, TypeVar, get_type_hints

from specplug.arguments import (
    check_keywords,
    check_options,
    check_ranges,
    check_types,
    check_value,
    checked,
)
from specplug.bundle import Bundle, Component
from specplug.drafters import (
    DRAFTERS,
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
from specplug.owned import closing_on_failure
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
)

AnyDecoder = TypeVar("AnyDecoder")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How engines are to run; the same for target and draft.

    Raises:
        ValueError: a value of a wrong type or outside its range.
    """

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

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(
            self,
            (
                ("engine", "the name of an engine", self.engine != ""),
                ("device", "the name of a device, such as cpu or cuda:1", self.device != ""),
                ("threads", "in [1, 1024]", self.threads is None or 1 <= self.threads <= 1024),
                ("providers", "at least one provider's name", len(self.providers) > 0),
                ("max_batch", "at least 1", self.max_batch >= 1),
            ),
        )


_ENGINES_OWN = {
    "engine": "pass target_engine= or draft_engine=",
    "device": "pass target_device= or draft_device=",
    "beside": "it is for engines, not for decoders",
}
_LOOKUP = ("prompt_lookup_min", "prompt_lookup_max")
_OF_A_DRAFT = ("draft_engine", "draft_device")


def check_drafter(name: object) -> None:
    """Refuse what no drafter is called.

    Raises:
        ValueError: naming the nearest one.
    """
    check_value("drafter", name, str)
    if name not in DRAFTERS:
        near = difflib.get_close_matches(str(name), DRAFTERS, n=1)
        meant = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"drafter {name!r} is none of {', '.join(DRAFTERS)}{meant}")


def check_part_options(
    call: str, drafter: str, options: Mapping[str, Any], *, beside: Collection[str] = ()
) -> None:
    """Refuse keywords of :func:`open_parts` that it does not have or that do nothing.

    Args:
        call: what was called.
        drafter: its name.
        options: the keywords.
        beside: what else the call has, which may have been meant.

    Raises:
        TypeError: an unknown keyword.
        ValueError: a value of a wrong type or outside its range, or an option that the drafter
            does not use.
    """
    check_drafter(drafter)
    hints = get_type_hints(open_parts)
    own = {name: hints[name] for name in open_parts.__kwdefaults__ or ()}
    engine = {one.name for one in fields(EngineOptions)} - _ENGINES_OWN.keys()
    known = {*own, *engine, *beside}
    check_keywords(call, options, known, elsewhere=_ENGINES_OWN)
    for name in options.keys() & own.keys():
        check_value(name, options[name], own[name])
    EngineOptions(**{name: options[name] for name in options.keys() & engine})
    for name in _LOOKUP:
        if options.get(name) is not None and drafter != "ngram":
            raise ValueError(
                f"{name} {options[name]}: drafter {drafter!r} does not use it, 'ngram' alone does"
            )
    for name in _OF_A_DRAFT:
        if options.get(name) is not None and drafter not in (*OF_A_BUNDLE, "auto"):
            raise ValueError(f"{name} {options[name]!r}: drafter {drafter!r} has no engine")
    if drafter == "ngram":
        NgramDrafter(**_lookup(options))


def _lookup(options: Mapping[str, Any]) -> dict[str, int]:
    return {name: options[name] for name in _LOOKUP if options.get(name) is not None}


def open_parts(
    bundle: Bundle,
    drafter: str,
    *,
    prompt_lookup_min: int | None = None,
    prompt_lookup_max: int | None = None,
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
        prompt_lookup_min: of the n-gram drafter; None: its own.
        prompt_lookup_max: of the n-gram drafter; None: its own.
        history: texts of earlier requests for the drafters that look there, perhaps shared with
            other decoders; None: of this decoder's own requests.
        target_engine: as in :class:`EngineOptions`, like the three that follow.
        target_device: see there.
        draft_engine: see there.
        draft_device: see there.
        engine_options: the other fields of it, for both engines.

    Raises:
        TypeError: an unknown keyword.
        ValueError: a value of a wrong type or outside its range, or an option that the drafter
            does not use.
        BundleError: the bundle holds no draft, and the drafter needs one.
        EngineError: an engine cannot run it.
    """
    from specplug import engines

    lookup = {"prompt_lookup_min": prompt_lookup_min, "prompt_lookup_max": prompt_lookup_max}
    of_draft = {"draft_engine": draft_engine, "draft_device": draft_device}
    named = {"target_engine": target_engine, "target_device": target_device, "history": history}
    check_part_options("open_parts", drafter, {**lookup, **of_draft, **named, **engine_options})
    check_value("bundle", bundle, Bundle)
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
    for name, value in of_draft.items():
        if value is not None and not has_draft:
            raise ValueError(f"{name} {value!r}: {bundle.path} holds no draft")
    if has_draft:
        check_draft(bundle)
        options = replace(options, share_threads=True)
    with closing_on_failure() as opened:
        target = opened(
            engines.load(
                bundle.path,
                bundle.manifest.target,
                replace(options, engine=target_engine, device=target_device),
            )
        )
        costs = read_costs(bundle, target, options.threads)
        draft = None
        if has_draft:
            of_draft_engine = replace(
                options, engine=draft_engine, device=draft_device, beside=target
            )
            draft = opened(open_draft(bundle, of_draft_engine))
        return {
            "target": target,
            "drafter": make_drafter(
                drafter,
                draft=draft,
                history=history,
                continuations=bundle.continuations() if drafter in ("auto", "recycle") else None,
                **_lookup(lookup),
            ),
            "tokenizer": bundle.tokenizer(),
            "stop_token_ids": bundle.manifest.stop_token_ids,  # None: the tokenizer's
            "costs": costs,
        }


def open_decoder(
    kind: Callable[..., AnyDecoder],
    own: Mapping[str, Any],
    bundle: Bundle,
    drafter: str,
    **options: Any,
) -> AnyDecoder:
    """A decoder over a bundle; whatever fails, nothing that was opened for it stays open.

    Args:
        kind: a decoder's class.
        own: arguments of it that take precedence over the bundle's parts.
        bundle: as for :func:`open_parts`, like what follows.
        drafter: see there.
        options: see there.

    Raises:
        What :func:`open_parts` and ``kind`` raise.
    """
    with closing_on_failure() as opened:
        parts = open_parts(bundle, drafter, **options)
        for name in ("target", "drafter"):
            opened(parts[name])
        return kind(**{**parts, **own})


@checked(kept=("name",))
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

    Raises:
        TypeError: an unknown keyword.
        ValueError: no drafter has the name, one that needs a draft got none, or a drafter got
            arguments that it does not use.
    """
    check_drafter(name)
    check_options("make_drafter", lookup, _Lookup)
    if lookup and name != "ngram":
        raise ValueError(f"{min(lookup)}: drafter {name!r} does not use it, 'ngram' alone does")
    if draft is not None and name not in (*OF_A_BUNDLE, "auto"):
        raise ValueError(f"draft: drafter {name!r} does not use it")
    if draft is None and name in OF_A_BUNDLE:
        raise ValueError(f"drafter {name!r} is a model: give draft=, or open a bundle with one")
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
        case "draft" | "self" | "head" | "universal" if draft is not None:
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
        case "none":
            return NoDrafter()
    raise ValueError(
        f"drafter {name!r} is in DRAFTERS, which does not say how it is made: pass the drafter "
        "itself, SpeculativeDecoder(target, drafter=…)"
    )


class _Lookup(TypedDict, total=False):
    prompt_lookup_min: int
    prompt_lookup_max: int


@checked()
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
        with closing_on_failure() as opened:
            engine = opened(engines.load(bundle.path, draft, options))
            return TreeDrafter("universal", [way(engine, translation)])
    if draft.head is None:
        with closing_on_failure() as opened:
            return ModelDrafter(opened(engines.load(bundle.path, draft, options)))
    if options.beside is not None and HIDDEN_STATES not in options.beside.spec.hidden:
        raise EngineError(
            f"the engine {options.beside.spec.name} gives none of the hidden states that the "
            "bundle's head reads: use another engine for the target, or another drafter"
        )
    vocabulary = bundle.head_vocabulary()
    with closing_on_failure() as opened:
        # What a head guesses changes no text, so its calls need no padding.
        engine = opened(engines.load(bundle.path, draft, replace(options, allow_narrow=True)))
        if draft.head.block is not None:
            return TreeDrafter("head", [BlockSource(engine, draft.head.block, vocabulary)])
        return TreeDrafter("head", [HeadSource(engine, vocabulary)])


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
