"""Words that an answer must not have, as sequences of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specplug.sampling import SamplingParams
from specplug.text import Tokenizer


def with_bad_words(
    params: SamplingParams, words: Sequence[str], tokenizer: Tokenizer | None
) -> SamplingParams:
    """The parameters with words excluded, within a text and after a space.

    Args:
        params: how tokens are chosen.
        words: to be excluded.
        tokenizer: of the target, whose spelling of the words is excluded; no other is.

    Raises:
        ValueError: a word without a character, or words without a tokenizer.
    """
    if not words:
        return params
    if isinstance(words, str):
        raise ValueError(f"bad_words {words!r}: it must be a list of words")
    if tokenizer is None:
        raise ValueError(
            f"bad_words {words[0]!r}: words need a tokenizer: give SamplingParams.bad_words_ids"
        )
    found = [tuple(sequence) for sequence in params.bad_words_ids]
    for word in words:
        bare = word.lstrip()
        if not bare:
            raise ValueError(f"bad_words {word!r}: a word has at least one character but spaces")
        found += [tuple(tokenizer.encode_within(text)) for text in (bare, f" {bare}")]
    return replace(params, bad_words_ids=list(dict.fromkeys(filter(None, found))))
