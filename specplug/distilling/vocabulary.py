"""The draft vocabulary: the tokens that a head guesses, chosen by what the target says."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np

from specplug.distilling.shards import Record
from specplug.types import Float64Array, Int32Array, Int64Array


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Which tokens, and how much of the answers they are."""

    ids: Int32Array
    """The target's, ascending."""
    answers: int
    """Tokens of all answers."""
    covered: int
    """Those of them that are in it."""
    mass: float
    """Of the target's probabilities over its likeliest tokens, the share that is in it."""


def choose_vocabulary(
    records: Iterable[Record], size: int, vocab_size: int, keep: Collection[int]
) -> Vocabulary:
    """The tokens that most texts have, prompts as well: answers say their words again.

    A token counts once a text, since a text's own subject says little about the next one's. Among
    equal ones those go first that the target thought likelier in answers, then the lower ids.

    Args:
        records: the texts.
        size: of the draft vocabulary.
        vocab_size: of the target.
        keep: tokens that are in it in any case, those that end an answer above all.

    Raises:
        ValueError: there is no room for ``keep``, or there are fewer tokens.
    """
    if not len(keep) <= size <= vocab_size:
        raise ValueError(
            f"a draft vocabulary of {size}: give {max(len(keep), 1)} to {vocab_size}, which this "
            "target has"
        )
    said, likely, texts = _counts(records, vocab_size)
    texts[list(keep)] = np.iinfo(np.int64).max
    ids = np.sort(np.lexsort((-likely, -texts))[:size])
    return _described(ids, said, likely)


def describe_vocabulary(records: Iterable[Record], ids: Int32Array, vocab_size: int) -> Vocabulary:
    """A draft vocabulary that is given, ascending, and how much of the answers it is."""
    said, likely, _ = _counts(records, vocab_size)
    return _described(ids, said, likely)


def _counts(
    records: Iterable[Record], vocab_size: int
) -> tuple[Int64Array, Float64Array, Int64Array]:
    """How often answers have each token, how often it was to be expected, and how many texts do."""
    said, texts = np.zeros((2, vocab_size), dtype=np.int64)
    likely = np.zeros(vocab_size)
    for record in records:
        texts[np.unique(record.tokens)] += 1
        said += np.bincount(record.tokens[record.begin :], minlength=vocab_size)
        logits = np.asarray(record.logits, dtype=np.float64)
        chances = np.exp(logits - logits.max(-1, keepdims=True))
        chances /= chances.sum(-1, keepdims=True)
        likely += np.bincount(record.ids.ravel(), chances.ravel(), vocab_size)
    return said, likely, texts


def _described(ids: Int32Array | Int64Array, said: Int64Array, likely: Float64Array) -> Vocabulary:
    return Vocabulary(
        ids.astype(np.int32),
        int(said.sum()),
        int(said[ids].sum()),
        float(likely[ids].sum() / max(likely.sum(), np.finfo(float).tiny)),
    )
