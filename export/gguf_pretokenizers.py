"""llama.cpp's pre-tokenizer types (``tokenizer.ggml.pre``) as pre-tokenizers of ``tokenizers``."""

from __future__ import annotations

from tokenizers import pre_tokenizers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

GPT2 = ("gpt-2", "phi-2", "gigachat", "mellum", "mpt", "olmo", "jais", "trillion", "exaone4")
"""GPT-2's rule alone."""

DIGITS = (
    "smollm",
    "starcoder",
    "refact",
    "command-r",
    "codeshell",
    "exaone",
    "minerva-7b",
    "mellum2",
)
"""Every digit alone, then GPT-2's rule."""


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer | None:
    """The pre-tokenizer of a type, which leaves bytes in GPT-2's letters.

    Returns:
        None for a type that transformers knows the rule of.

    Raises:
        ValueError: a type that is not known.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in GPT2:
        return byte_level
    if name in DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        return None
    known = sorted({*GPT2, *DIGITS, *GGUF_PRE_TOKENIZER_SPLITS})
    raise ValueError(f"pre-tokenizer {name!r} is not supported: have {', '.join(known)}")
