"""How much of a text one token can be, where a tokenizer's kind lets that be known."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_KEEPING = ("ByteLevel", "Digits", "Split", "Punctuation")  # unless what they split at is removed
_BYTES = 256


def most_bytes(backend: tokenizers.Tokenizer) -> int:
    """UTF-8 bytes of a text that one token stands for at most; 0: not known.

    It is known of byte-level BPE that neither normalizes a text nor drops any of it. There each
    character of a token is a byte, and every byte has a token.
    """
    whole: dict[str, Any] = json.loads(backend.to_str())
    model, added = whole["model"], whole.get("added_tokens") or ()
    if model.get("type") != "BPE" or whole.get("normalizer") is not None:
        return 0
    steps = whole.get("pre_tokenizer") or {}
    steps = steps["pretokenizers"] if steps.get("type") == "Sequence" else [steps]
    kinds = [one.get("type") for one in steps]
    drops = any(kind not in _KEEPING for kind in kinds) or any(
        one.get("behavior") == "Removed" for one in steps
    )
    if drops or "ByteLevel" not in kinds or any(one["lstrip"] or one["rstrip"] for one in added):
        return 0
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        return 0
    alphabet, vocabulary = _alphabet(), model["vocab"]
    if sum(len(token) == 1 and token in alphabet for token in vocabulary) < _BYTES:
        return 0
    return max(
        max(map(len, vocabulary)), max((len(one["content"].encode()) for one in added), default=0)
    )


def _alphabet() -> frozenset[str]:
    """The characters that stand for bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return frozenset(ByteLevel.alphabet())
