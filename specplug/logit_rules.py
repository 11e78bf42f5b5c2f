"""The rules of sampling that change logits by token, as arrays that are built once.

A request may name tens of thousands of tokens. A loop over them in Python, in every scored row,
would be paid by all rows of a batch.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from specplug.types import Float32Array, Int64Array

if TYPE_CHECKING:
    from specplug.sampling import SamplingParams


class LogitRules:
    """Bias, penalties, bans, forced tokens and custom processors, in transformers' order.

    The answers to one request may share it, in any threads: it is not written to.

    Args:
        params: what is asked for.
    """

    def __init__(self, params: SamplingParams) -> None:
        self.params = params
        self._active = params.shapes_logits
        self._biased = token_array(params.logit_bias)
        # One by one, since an array of Python integers would be rounded twice.
        self._biases = np.array(
            [np.float32(bias) for bias in params.logit_bias.values()], dtype=np.float32
        )
        single = [sequence[0] for sequence in params.bad_words_ids if len(sequence) == 1]
        self._banned = np.unique(token_array([*params.banned_tokens, *single]))
        self._completions = _completions(params.bad_words_ids)
        self._allowed = None
        if params.allowed_token_ids is not None:
            self._allowed = np.unique(token_array(params.allowed_token_ids))

    def shape(self, logits: Float32Array, history: Int64Array, prompt_tokens: int) -> Float32Array:
        """The logits after all rules.

        Args:
            logits: f32[V]; not written to.
            history: the tokens so far, i64[n], drafts before this position included.
            prompt_tokens: how many of them are the prompt's.

        Returns:
            f32[V], -inf for what cannot be.
        """
        if not self._active:
            return logits
        logits = logits.copy()
        logits[self._biased] += self._biases
        self._penalize(logits, history, prompt_tokens)
        self._ban(logits, history)
        if self._allowed is not None:
            only, logits = logits, np.full_like(logits, -np.inf)
            logits[self._allowed] = only[self._allowed]
        forced = self.params.forced_tokens.get(len(history) - prompt_tokens)
        if forced is not None:
            logits[:] = -np.inf
            logits[forced] = 0
        return self._processed(logits, history)

    def _penalize(self, logits: Float32Array, history: Int64Array, prompt_tokens: int) -> None:
        params = self.params
        if params.repetition_penalty != 1:
            seen = np.flatnonzero(occurring(history, len(logits)))
            penalty = np.float32(params.repetition_penalty)
            chosen = logits[seen]
            logits[seen] = np.where(chosen < 0, chosen * penalty, chosen / penalty)
        if params.presence_penalty or params.frequency_penalty:
            counts = np.bincount(history[prompt_tokens:], minlength=len(logits))
            tokens = np.flatnonzero(counts)
            taken = params.presence_penalty + params.frequency_penalty * counts[tokens]
            logits[tokens] -= taken.astype(np.float32)

    def _ban(self, logits: Float32Array, history: Int64Array) -> None:
        if self.params.no_repeat_ngram:
            logits[completing(history, self.params.no_repeat_ngram)] = -np.inf
        for length, completions in self._completions.items():
            if length <= len(history):
                last = completions.get(history[len(history) - length :].tobytes())
                if last is not None:
                    logits[last] = -np.inf
        logits[self._banned] = -np.inf

    def _processed(self, logits: Float32Array, history: Int64Array) -> Float32Array:
        for processor in self.params.processors:
            made = np.asarray(processor(history, logits))
            if made.shape != logits.shape or made.dtype.kind not in "fiu":
                raise ValueError(
                    f"processor {getattr(processor, '__qualname__', type(processor).__name__)} "
                    f"gave {made.dtype} {list(made.shape)} for logits f32 [{len(logits)}]: it must "
                    "keep their shape"
                )
            logits = made.astype(np.float32, copy=False)
        return logits


def token_array(tokens: Collection[int]) -> Int64Array:
    """Token ids as i64[n]."""
    return np.fromiter(tokens, dtype=np.int64, count=len(tokens))


def occurring(tokens: Int64Array, vocab_size: int) -> NDArray[np.bool_]:
    """Which tokens of a vocabulary occur, bool[V]."""
    found = np.zeros(vocab_size, dtype=np.bool_)
    found[tokens] = True
    return found


def completing(history: Int64Array, size: int) -> Int64Array:
    """Tokens that would complete an n-gram of ``size`` tokens that occurred, i64[n]."""
    if len(history) < size:
        return np.empty(0, dtype=np.int64)
    starts = np.arange(len(history) - size + 1)
    for offset in range(size - 2, -1, -1):  # the latest token first: it leaves few
        if not len(starts):
            break
        wanted = history[len(history) + 1 - size + offset]
        starts = starts[history[starts + offset] == wanted]
    return np.asarray(history[starts + size - 1])


def _completions(sequences: Sequence[Sequence[int]]) -> dict[int, dict[bytes, Int64Array]]:
    """The last tokens of sequences of two or more, by how many come before, and by the bytes of
    those (i64).
    """
    found: dict[int, dict[bytes, list[int]]] = {}
    for sequence in sequences:
        if len(sequence) > 1:
            before = token_array(sequence[:-1]).tobytes()
            found.setdefault(len(sequence) - 1, {}).setdefault(before, []).append(sequence[-1])
    return {
        length: {before: token_array(last) for before, last in completions.items()}
        for length, completions in found.items()
    }
