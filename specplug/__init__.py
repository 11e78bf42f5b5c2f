"""Speculative decoding as a plug-in for the inference engine you already run.

>>> decoder = SpeculativeDecoder.from_bundle("smol.bundle", drafter="auto")
>>> for token in decoder.stream("Write a haiku about rivers.", max_tokens=64):
...     print(token, end="")
"""

import os

# ONNX Runtime (1.29 and newer, its Linux wheels too) sends usage events from its import on unless
# this is set before. Whoever wants that sets the variable to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

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
    Drafter,
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

__all__ = [
    "BatchDecoder",
    "Budget",
    "Bundle",
    "BundleError",
    "ContextLimitError",
    "Drafter",
    "Engine",
    "EngineError",
    "EngineOptions",
    "EngineSpec",
    "ExportError",
    "History",
    "MissingExtraError",
    "ModelDrafter",
    "NgramDrafter",
    "NoDrafter",
    "Outcome",
    "ParityError",
    "Proposal",
    "Request",
    "Result",
    "SamplingParams",
    "Scores",
    "SpecplugError",
    "SpeculationStats",
    "SpeculativeDecoder",
    "Step",
    "Token",
    "TokenLogprobs",
    "Tokenizer",
    "Verdict",
]
