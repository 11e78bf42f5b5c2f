"""From a component's dialect to the class that runs its graph in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeGuard

from specplug.engines.ort import OrtEngine
from specplug.engines.ort_concat import OrtConcatEngine
from specplug.engines.ort_session import off_cpu
from specplug.engines.ort_standard import OrtStandardEngine
from specplug.engines.padded import PaddedEngine
from specplug.owned import closing_on_failure
from specplug.types import Engine

if TYPE_CHECKING:
    from specplug.bundle import Component, Dialect
    from specplug.opening import EngineOptions

DIALECTS: dict[Dialect, type[OrtEngine] | type[OrtConcatEngine]] = {
    "ort": OrtEngine,
    "standard": OrtStandardEngine,
    "concat": OrtConcatEngine,
}


def open_component(
    folder: Path, component: Component, options: EngineOptions
) -> OrtEngine | OrtConcatEngine | PaddedEngine:
    """An engine over a component's graph.

    Raises:
        EngineError: as :class:`OrtEngine` does, or, off the CPU, as :class:`PaddedEngine` does.
    """
    padded = off_cpu(options) and not options.allow_narrow
    if padded:  # min_width was measured on a CPU
        options = replace(options, allow_narrow=True)
    more: dict[str, Any] = {}
    target = options.beside
    if (
        component.layers is not None
        and component.dialect != "concat"
        and _can_share(target, component)
    ):
        more["shared"] = (target.cache, component.layers)
    if component.head is not None:
        more["input_vocab_size"] = component.head.input_vocab_size
    engine = DIALECTS[component.dialect](
        folder / component.graph,
        cache=component.cache,
        vocab_size=component.vocab_size,
        max_length=component.max_length,
        min_width=component.min_width,
        exact_trees=component.exact_trees,
        options=options,
        **more,
    )
    if not padded or not isinstance(engine, OrtEngine):
        return engine
    with closing_on_failure() as opened:
        return PaddedEngine(opened(engine))


def _can_share(target: Engine | None, component: Component) -> TypeGuard[OrtEngine]:
    """Whether a draft of the target's layers reads keys and values as the target writes them."""
    if not isinstance(target, OrtEngine):
        return False
    own, its = component.cache, target.cache.layout
    return (own.heads, own.head_size, own.dtype) == (its.heads, its.head_size, its.dtype)
