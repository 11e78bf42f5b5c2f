"""The engines: adapters that put an inference backend behind ``forward(step)``. One file each."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from specplug.arguments import check_value
from specplug.types import BundleError, Engine

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.opening import EngineOptions

GROUP = "specplug.engines"
"""The entry points by which other packages add engines: name = "package.module:factory"."""

Factory = Callable[[Path, "Component", "EngineOptions"], Engine]
"""From a bundle's folder, a component of it and options to an engine; may raise EngineError."""

# name -> module with a factory ``open_component``, imported only when asked for.
_BUILT_IN = {
    "onnxruntime": "specplug.engines.ort_dialects",
    "pytorch": "specplug.engines.pytorch",
    "tensorrt": "specplug.engines.tensorrt",
}
_registered: dict[str, Factory] = {}


def register(name: str, factory: Factory) -> None:
    """Make an engine known under a name, in this process; an entry point does it in every one.

    Raises:
        ValueError: the name is taken.
    """
    check_value("name", name, str)
    check_value("factory", factory, Callable[..., Engine])
    if name in names():
        raise ValueError(f"an engine named {name!r} is there already: choose another name")
    _registered[name] = factory


def names() -> list[str]:
    """The engines that are known, whether or not what they need is installed."""
    return [*_BUILT_IN, *sorted({*_registered, *entry_points(group=GROUP).names})]


def load(folder: Path, component: Component, options: EngineOptions) -> Engine:
    """Open a bundle's component, with the engine that is asked for or its own.

    Raises:
        BundleError: no engine of that name.
        EngineError: the engine refuses the component.
        MissingExtraError: its library is not installed.
    """
    return _factory(options.engine or component.engine)(folder, component, options)


def _factory(name: str) -> Factory:
    if name in _registered:
        return _registered[name]
    if name in _BUILT_IN:
        factory: Factory = import_module(_BUILT_IN[name]).open_component
        return factory
    found = [*entry_points(group=GROUP, name=name)]
    if not found:
        raise BundleError(f"no engine named {name!r}: have {', '.join(names())}")
    made: Factory = found[0].load()
    return made
