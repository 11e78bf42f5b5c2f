"""A draft made of the target itself: rounded coarser, with layers skipped, or both."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, cast, get_args

from specplug.export.precision import Precision
from specplug.types import ExportError

if TYPE_CHECKING:
    from specplug.export.source import Source

_LAYER = re.compile(r"(?<=\.)(layers|h)\.(\d+)(?=\.)")
_BY_LAYER = ("layer_types", "mlp_layer_types", "no_rope_layers")  # of configurations


@dataclass(frozen=True, slots=True)
class SelfDraft:
    """What is drafted with."""

    precision: Precision | None
    """None: the target's."""
    layers: tuple[int, ...] | None
    """Those that are kept, ascending; None: all."""


def parse_self_draft(text: str) -> SelfDraft:
    """Read ``int4``, ``layers=0-9,20-29`` or ``int4:layers=0-9,20-29``.

    Raises:
        ExportError: it reads as none of these.
    """
    precision, _, layers = text.rpartition("layers=") if "layers=" in text else (text, "", "")
    precision = precision.removesuffix(":")
    if precision and precision not in get_args(Precision):
        raise ExportError(
            f"--self-draft {text!r}: give a precision ({', '.join(get_args(Precision))}), "
            "layers=0-9,20-29, or both as int4:layers=0-9,20-29"
        )
    chosen: list[int] = []
    for part in filter(None, layers.split(",")):
        bounds = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", part)
        if bounds is None:
            raise ExportError(f"--self-draft {text!r}: {part!r} is no layer and no range of layers")
        chosen += range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
    if "layers=" in text and (not chosen or chosen != sorted(set(chosen))):
        raise ExportError(f"--self-draft {text!r}: list layers once each, in ascending order")
    return SelfDraft(cast(Precision, precision) if precision else None, tuple(chosen) or None)


def with_layers(source: Source, layers: tuple[int, ...]) -> Source:
    """The same checkpoint with these layers alone.

    Raises:
        ExportError: it has fewer layers, or no more than these.
    """
    count = int(source.config.num_hidden_layers)
    if layers[-1] >= count or len(layers) == count:
        raise ExportError(
            f"--self-draft layers={layers[0]}…{layers[-1]}: the model has {count} layers, 0 to "
            f"{count - 1}; keep fewer than all of them"
        )
    config = copy.deepcopy(source.config)
    config.num_hidden_layers = len(layers)
    for name in _BY_LAYER:
        values = getattr(config, name, None)
        if values is not None:
            setattr(config, name, [values[layer] for layer in layers])
    places = {layer: place for place, layer in enumerate(layers)}
    weights = {}
    for name, tensor in source.weights.items():
        match = _LAYER.search(name)
        if match is None:
            weights[name] = tensor
        elif int(match[2]) in places:
            renamed = f"{match[1]}.{places[int(match[2])]}"
            weights[name[: match.start()] + renamed + name[match.end() :]] = tensor
    return replace(source, config=config, weights=weights)
