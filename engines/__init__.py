"""The engines: adapters that put an inference backend behind ``forward(step)``. One file each."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from specplug.types import BundleError, Engine

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.opening import EngineOptions

# name -> module and factory(folder, component, options); imported only when asked for.
_ENGINES = {
    "onnxruntime": ("specplug.engines.ort", "OrtEngine.from_component"),
    "onnxruntime-concat": ("specplug.engines.ort_concat", "OrtConcatEngine.from_component"),
}


def load(folder: Path, component: Component, options: EngineOptions) -> Engine:
    """Open a bundle's component with the engine it was exported for.

    Raises:
        BundleError: no adapter of that name.
        EngineError: the backend refuses the graph.
    """
    if component.engine not in _ENGINES:
        raise BundleError(f"no engine named {component.engine!r}: have {', '.join(_ENGINES)}")
    module, factory = _ENGINES[component.engine]
    made = import_module(module)
    for part in factory.split("."):
        made = getattr(made, part)
    engine: Engine = made(folder, component, options)  # type: ignore[operator]
    return engine
