"""The engines: adapters that put an inference backend behind ``forward(step)``. One file each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from specplug.types import BundleError, Engine

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.opening import EngineOptions

# name -> module and class, imported only when asked for; all are made as OrtEngine is.
_ENGINES = {
    "onnxruntime": ("specplug.engines.ort", "OrtEngine"),
    "onnxruntime-concat": ("specplug.engines.ort_concat", "OrtConcatEngine"),
}


def load(folder: Path, component: Component, options: EngineOptions) -> Engine:
    """Open a bundle's component with the engine it was exported for.

    Raises:
        BundleError: no adapter of that name.
        EngineError: the backend refuses the graph.
    """
    if component.engine not in _ENGINES:
        raise BundleError(f"no engine named {component.engine!r}: have {', '.join(_ENGINES)}")
    module, name = _ENGINES[component.engine]
    engine: Engine = getattr(import_module(module), name)(
        folder / component.graph,
        cache=component.cache,
        vocab_size=component.vocab_size,
        max_length=component.max_length,
        min_width=component.min_width,
        options=options,
    )
    return engine
