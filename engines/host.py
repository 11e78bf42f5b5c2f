"""What adapters share whose logits are numpy arrays on the host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from specplug.types import NO_TOKEN, EngineError, EngineSpec, Float32Array, Int64Array, Step


class HostScores:
    """Scores over an array of logits, f32[B, T', V], and hidden states by name, f32[B, T, D]."""

    __slots__ = ("_best", "_hidden", "_logits")

    def __init__(
        self, logits: Float32Array, hidden: Mapping[str, Float32Array] | None = None
    ) -> None:
        self._logits = logits.view()
        self._logits.flags.writeable = False  # drafters look at it before the verdict
        self._hidden = hidden
        self._best: Int64Array | None = None

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T']; see :class:`specplug.types.Scores`."""
        if self._best is None:
            self._best = best_tokens(self._logits)
        return self._best

    def logits(self) -> Float32Array:
        """The array itself, not to be written to."""
        return self._logits

    def hidden(self, name: str) -> Float32Array:
        """The array itself."""
        if self._hidden and name in self._hidden:
            return self._hidden[name]
        raise EngineError(f"this graph has no hidden-state output {name!r}")


def best_tokens(logits: Float32Array) -> Int64Array:
    """The best token of each position, i64[B, T']; NO_TOKEN where the scores are not numbers.

    Args:
        logits: f32[B, T', V].
    """
    best: Int64Array = logits.argmax(axis=-1)
    # The largest is NaN if any is, and infinite if any is or all are: one look tells of all V.
    batch, positions = best.shape
    largest = logits[np.arange(batch)[:, None], np.arange(positions), best]
    finite = np.isfinite(largest)
    return best if finite.all() else np.where(finite, best, NO_TOKEN)


def check_step(spec: EngineSpec, step: Step) -> None:
    """Refuse a step that ``spec`` does not allow, naming the value and the limit.

    Raises:
        EngineError: as said.
    """
    if step.tokens.ndim != 2 or not step.tokens.size:
        raise EngineError(f"tokens have shape {step.tokens.shape}: need [B, T], B and T at least 1")
    batch, width = step.tokens.shape
    if batch > spec.max_batch:
        raise EngineError(f"batch of {batch}: {spec.name} takes {spec.max_batch} here")
    if not 0 <= step.first_row <= spec.max_batch - batch:
        raise EngineError(
            f"first_row {step.first_row} of a batch of {batch}: {spec.name} has "
            f"{spec.max_batch} rows here"
        )
    if step.past.shape != (batch,):
        raise EngineError(f"past has shape {step.past.shape}: need ({batch},)")
    if width < spec.min_width:
        raise EngineError(
            f"call of width {width} is narrower than min_width {spec.min_width}: pad it"
        )
    if not 0 <= step.scores_from < width:
        raise EngineError(f"scores_from {step.scores_from} is outside the call's {width} tokens")
    # Plain lists: on the few values of a decoding call numpy's reductions cost ten times as much.
    pasts = step.past.tolist()
    if min(pasts) < 0:
        raise EngineError(f"past {min(pasts)} is negative")
    if max(pasts) + width > spec.max_length:
        raise EngineError(
            f"{max(pasts)} cached + {width} new tokens exceed max_length {spec.max_length}"
        )
    if step.parents is not None and not spec.supports_tree:
        raise EngineError(f"{spec.name} has no token trees here: draft chains")
    if step.block and not (spec.supports_block and step.block <= width and step.parents is None):
        raise EngineError(
            f"a block of {step.block} in a call of {width} tokens: {spec.name} takes "
            f"{'one inside a chain' if spec.supports_block else 'none here'}"
        )
    if step.lengths is not None:
        lengths = step.lengths.tolist()
        if len(lengths) != batch or min(lengths) < spec.min_width or max(lengths) > width:
            raise EngineError(
                f"lengths {lengths} of a batch of {batch}: need one a row, each from min_width "
                f"{spec.min_width} to the call's {width}"
            )
    vocab_size = spec.input_vocab_size or spec.vocab_size
    tokens = step.tokens.ravel().tolist()
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        raise EngineError(f"a token id is outside the vocabulary of {vocab_size}")
