"""The drafters: what proposes tokens for the target to check.

A drafter is a class of one method, ``propose``. Those here are made of *sources*, one file each,
that guess the next token at any place of a draft; :class:`TreeDrafter` merges their guesses.
"""

from __future__ import annotations

from specplug.drafters.block import BlockSource
from specplug.drafters.head import HeadSource
from specplug.drafters.model import ModelDrafter, ModelSource
from specplug.drafters.ngram import NgramDrafter, NgramSource
from specplug.drafters.none import NoDrafter
from specplug.drafters.predicted import PredictedSource
from specplug.drafters.recycle import RecycleSource
from specplug.drafters.source import Guess, Source
from specplug.drafters.suffix import HistorySource, SuffixSource
from specplug.drafters.tree import TreeDrafter
from specplug.drafters.universal import IntersectionSource, ReencodingSource

DRAFTERS: dict[str, str] = {
    "none": "plain decoding",
    "ngram": "the continuation of the longest recent match in prompt and output",
    "suffix": "what followed the longest match in prompt, output and earlier requests",
    "recycle": "what the target last chose after the same token",
    "predicted": "the answer that the caller expects",
    "draft": "the bundle's draft model, or its head",
    "self": "the target with layers skipped or in lower precision, over the target's own cache",
    "head": "the bundle's learned head, which reads the target's hidden states",
    "universal": "the bundle's draft model, where its tokenizer is another than the target's",
    "auto": "all of these that there are, merged",
}
"""Names that ``SpeculativeDecoder.from_bundle`` and ``--drafter`` take, with what they do."""

OF_A_BUNDLE = ("draft", "self", "head", "universal")
"""Those of them that need the draft of a bundle."""

__all__ = [
    "DRAFTERS",
    "OF_A_BUNDLE",
    "BlockSource",
    "Guess",
    "HeadSource",
    "HistorySource",
    "IntersectionSource",
    "ModelDrafter",
    "ModelSource",
    "NgramDrafter",
    "NgramSource",
    "NoDrafter",
    "PredictedSource",
    "RecycleSource",
    "ReencodingSource",
    "Source",
    "SuffixSource",
    "TreeDrafter",
]
