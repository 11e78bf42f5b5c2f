"""The TensorRT that is installed: ``tensorrt`` 10 or 11, or TensorRT-RTX with the same API."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, Literal

from specplug.types import MissingExtraError

# What each is called, and what has to be imported, the API last.
_KNOWN: tuple[tuple[Literal["tensorrt", "tensorrt-rtx"], tuple[str, ...]], ...] = (
    ("tensorrt", ("tensorrt",)),
    ("tensorrt-rtx", ("tensorrt_rtx",)),
    ("tensorrt-rtx", ("tensorrt_rtx_libs", "tensorrt_rtx_bindings")),
)
_INSTALL = (
    "TensorRT is not installed: pip install 'specplug[tensorrt]' brings TensorRT-RTX; "
    "an installed tensorrt 10 or 11 is used first"
)


@dataclass(frozen=True, slots=True)
class Library:
    """A TensorRT."""

    name: Literal["tensorrt", "tensorrt-rtx"]
    """Plans of one are not plans of the other."""
    version: str
    """A plan runs with the version that built it."""
    api: Any
    """The Python module."""

    @property
    def is_rtx(self) -> bool:
        """Whether it builds for other GPUs than the machine's."""
        return self.name == "tensorrt-rtx"


@cache
def find_library() -> Library:
    """The TensorRT of this environment.

    Raises:
        MissingExtraError: there is none.
    """
    for name, modules in _KNOWN:
        try:
            *_, api = [import_module(module) for module in modules]
        except ImportError:
            continue
        return Library(name, str(api.__version__), api)
    raise MissingExtraError(_INSTALL)
