"""What is kept of a model between calls: its engine and decoders, for as long as it lives."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch

from specplug.controller import CallCosts
from specplug.costs import measure_costs
from specplug.decoder import SpeculativeDecoder
from specplug.engines.pytorch import open_model
from specplug.feeding import feed
from specplug.generation_options import DraftTokens
from specplug.history import History
from specplug.opening import make_drafter
from specplug.types import Engine, EngineError

_TOLERANCE = {torch.float32: 1e-2}  # of the logits' spread
_TOLERANCE_HALF = 0.25
_CHECKED, _TAKEN_BACK, _ASKED = 20, 4, 8  # tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Decoders differ by these; see :func:`speculate`."""

    bundle: Path | None
    drafter: str
    draft_tokens: DraftTokens
    inexact_trees: bool
    history: History | None


@dataclass(slots=True)
class _Kept:
    """Of one model, which is not itself referred to: it would never be freed."""

    place: tuple[torch.device, torch.dtype]
    lock: Lock = field(default_factory=Lock)
    engine: Engine | None = None
    costs: CallCosts | None = None
    decoders: dict[Settings, SpeculativeDecoder] = field(default_factory=dict)


_models: weakref.WeakKeyDictionary[Any, _Kept] = weakref.WeakKeyDictionary()
_lock = Lock()


def kept(model: Any) -> _Kept:
    """What there is of a model; anew if it was moved to another device or type."""
    place = model.device, model.dtype
    with _lock:
        found = _models.get(model)
        if found is None or found.place != place:
            found = _models[model] = _Kept(place)
        return found


def decoder_of(model: Any, of: _Kept, settings: Settings) -> SpeculativeDecoder:
    """A decoder over the model, or in its place; the caller holds ``of.lock``.

    Raises:
        EngineError: the model cannot be driven from outside, or answers otherwise when it is.
        BundleError: the bundle cannot be opened.
        ValueError: the bundle has another vocabulary.
    """
    if settings not in of.decoders:
        opened = _over_bundle if settings.bundle else _over_model
        of.decoders[settings] = opened(model, of, settings)
    return of.decoders[settings]


def _over_bundle(model: Any, of: _Kept, settings: Settings) -> SpeculativeDecoder:
    decoder = SpeculativeDecoder.from_bundle(
        settings.bundle or "",
        drafter=settings.drafter,
        draft_tokens=settings.draft_tokens,
        inexact_trees=settings.inexact_trees,
        history=settings.history,
    )
    ours, theirs = decoder.target.spec.vocab_size, model.config.get_text_config().vocab_size
    if ours != theirs:
        decoder.close()
        raise ValueError(
            f"bundle {settings.bundle}: its vocabulary has {ours} tokens and the model's {theirs}: "
            "it was exported from another model"
        )
    return decoder


def _over_model(model: Any, of: _Kept, settings: Settings) -> SpeculativeDecoder:
    if of.engine is None:
        of.engine = _open(model)
    if of.costs is None and settings.draft_tokens == "auto" and settings.drafter != "none":
        of.costs = CallCosts(measure_costs(of.engine))
    return SpeculativeDecoder(
        of.engine,
        drafter=make_drafter(settings.drafter, history=settings.history),
        draft_tokens=settings.draft_tokens,
        inexact_trees=settings.inexact_trees,
        costs=of.costs,
    )


def _open(model: Any) -> Engine:
    config, name = model.config, type(model).__name__
    if config.get_text_config() is not config:
        raise EngineError(f"{name} takes more than text: only text models can be driven here")
    if not hasattr(config, "max_position_embeddings"):
        raise EngineError(
            f"{name} has no max_position_embeddings: models without positions of their own "
            "(ALiBi, recurrent layers) cannot be driven here"
        )
    try:
        engine = open_model(weakref.proxy(model))
        difference = _difference(model, engine)
    except Exception as error:  # models raise what they like when given a mask or a cache
        raise EngineError(f"{name} cannot be driven with a cache of ours: {error}") from error
    if difference > _TOLERANCE.get(model.dtype, _TOLERANCE_HALF):
        raise EngineError(
            f"{name} scores tokens otherwise with a cache of ours (by {difference:.3g} of the "
            "logits' spread): it cannot be driven here; export it to a bundle, or generate "
            "without speculation"
        )
    return engine


def _difference(model: Any, engine: Engine) -> float:
    """Between the model's logits and the engine's after taking tokens back."""
    spec = engine.spec
    count = _CHECKED - _TAKEN_BACK + _ASKED
    tokens = np.random.default_rng(0).integers(0, spec.vocab_size, size=count)
    wrong = np.roll(tokens, 1)[:_TAKEN_BACK].tolist()
    expected = model(input_ids=torch.from_numpy(tokens)[None].to(model.device)).logits
    past = count - _ASKED
    feed(engine, [*tokens[:past].tolist(), *wrong], past=0, scored=1)
    found = feed(engine, tokens[past:].tolist(), past=past, scored=_ASKED).logits()
    wanted = expected[0, -_ASKED:].float().cpu().numpy()
    return float(np.abs(found[0, :_ASKED] - wanted).max() / wanted.std())
