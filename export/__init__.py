"""From source weights to a bundle: graphs, tokenizer, manifest. Needs the ``export`` extra.

>>> from specplug.export import export_bundle
>>> export_bundle("SmolLM2-135M-Instruct.Q4_1.gguf", "smol.bundle", precision="w8a8")
"""

import importlib.util
import os
from typing import TYPE_CHECKING, Any

from specplug.types import MissingExtraError

if TYPE_CHECKING:
    from specplug.export.exporter import export_bundle
    from specplug.export.planning import Plan, plan_export

os.environ.setdefault("TQDM_DISABLE", "1")  # mobius's bars; before it imports tqdm

for _name in ("torch", "transformers", "mobius", "onnx_ir"):
    if importlib.util.find_spec(_name) is None:
        raise MissingExtraError(f"exporting needs {_name}: pip install 'specplug[export]'")

_MODULES = {"export_bundle": "exporter", "Plan": "planning", "plan_export": "planning"}
"""Imported when they are first used, which takes seconds: what is asked for is checked before."""

__all__ = ["Plan", "export_bundle", "plan_export"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"specplug.export.{_MODULES[name]}"), name)
