"""The drafters: what proposes tokens for the target to check. One file each, one line here."""

from __future__ import annotations

from specplug.drafters.model import ModelDrafter
from specplug.drafters.ngram import NgramDrafter
from specplug.drafters.none import NoDrafter

DRAFTERS: dict[str, str] = {
    "none": "plain decoding",
    "ngram": "the continuation of the longest recent match in prompt and output",
    "draft": "the bundle's draft model",
}
"""Names that ``SpeculativeDecoder.from_bundle`` and ``--drafter`` take, with what they do."""

__all__ = ["DRAFTERS", "ModelDrafter", "NgramDrafter", "NoDrafter"]
