"""Speculative decoding as a plug-in for the inference engine you already run.

>>> decoder = SpeculativeDecoder.from_bundle("smol.bundle", drafter="ngram", draft_tokens=8)
>>> for token in decoder.stream("Write a haiku about rivers.", max_tokens=64):
...     print(token, end="")
"""

from specplug.bundle import Bundle
from specplug.context import Token
from specplug.decoder import Result, SpeculativeDecoder
from specplug.drafters import ModelDrafter, NgramDrafter, NoDrafter
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
    ParityError,
    Proposal,
    Scores,
    SpecplugError,
    Step,
    Verdict,
)

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "BundleError",
    "ContextLimitError",
    "Drafter",
    "Engine",
    "EngineError",
    "EngineOptions",
    "EngineSpec",
    "ExportError",
    "MissingExtraError",
    "ModelDrafter",
    "NgramDrafter",
    "NoDrafter",
    "ParityError",
    "Proposal",
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
