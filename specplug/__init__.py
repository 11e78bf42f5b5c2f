"""Speculative decoding as a plug-in for the inference engine you already run.

>>> decoder = SpeculativeDecoder.from_bundle("smol.bundle", drafter="auto")
>>> for token in decoder.stream("Write a haiku about rivers.", max_tokens=64):
...     print(token, end="")
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

# ONNX Runtime (1.29 and newer, its Linux wheels too) sends usage events from its import on unless
# this is set before. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:  # the public names; _NAMES says the same while it runs
    from specplug.batching import BatchDecoder
    from specplug.budget import Budget
    from specplug.bundle import Bundle
    from specplug.context import Token
    from specplug.decoder import SpeculativeDecoder
    from specplug.drafters import ModelDrafter, NgramDrafter, NoDrafter
    from specplug.generation import Result
    from specplug.history import History
    from specplug.logprobs import TokenLogprobs
    from specplug.opening import EngineOptions
    from specplug.sampling import SamplingParams
    from specplug.stats import SpeculationStats
    from specplug.text import Tokenizer
    from specplug.types import (
        BundleError,
        ContextLimitError,
        DecoderBusyError,
        Drafter,
        DrafterError,
        Engine,
        EngineError,
        EngineSpec,
        ExportError,
        MissingExtraError,
        Outcome,
        ParityError,
        Proposal,
        Request,
        Scores,
        SpecplugError,
        Step,
        Verdict,
    )

__version__ = "0.1.0"

_NAMES = {
    "batching": ("BatchDecoder",),
    "budget": ("Budget",),
    "bundle": ("Bundle",),
    "context": ("Token",),
    "decoder": ("SpeculativeDecoder",),
    "drafters": ("ModelDrafter", "NgramDrafter", "NoDrafter"),
    "generation": ("Result",),
    "history": ("History",),
    "logprobs": ("TokenLogprobs",),
    "opening": ("EngineOptions",),
    "sampling": ("SamplingParams",),
    "stats": ("SpeculationStats",),
    "text": ("Tokenizer",),
    "types": (
        "BundleError",
        "ContextLimitError",
        "DecoderBusyError",
        "Drafter",
        "DrafterError",
        "Engine",
        "EngineError",
        "EngineSpec",
        "ExportError",
        "MissingExtraError",
        "Outcome",
        "ParityError",
        "Proposal",
        "Request",
        "Scores",
        "SpecplugError",
        "Step",
        "Verdict",
    ),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}
"""The public names and their modules, which are imported when a name is first used: so a command
with a wrong argument ends at once."""

__all__ = sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"specplug.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
