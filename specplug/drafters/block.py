"""A head that guesses several tokens at a call, each without knowing the others (DFlash)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from specplug.bundle import Block
from specplug.drafters.source import Guess
from specplug.drafters.states import Place, StatesSource
from specplug.feeding import PREFILL_WIDTH
from specplug.tenants import Tenants
from specplug.types import Engine, Float32Array, Int32Array, Outcome, Request

_SMOOTHING = 0.1  # of the run of right guesses
_UNREAD = [0]  # a token of the context, of which the head reads the target's states alone


@dataclass(slots=True)
class _Run:
    """Right guesses of a call whose first one was right, a running mean."""

    mean: float = 1.0


class BlockSource(StatesSource):
    """One call of a head a round, whose row of logits for a depth serves every place of it.

    The call reads what became text since the last one, and after it the block: the last token of
    the context, which the target has not read, and masks. The block's entries are overwritten by
    the next call's context.

    Args:
        engine: the head; reads ``features``, takes blocks.
        block: of the head.
        vocabulary: as of :class:`StatesSource`.
        row: of its cache.
    """

    def __init__(
        self, engine: Engine, block: Block, vocabulary: Int32Array | None = None, row: int = 0
    ) -> None:
        self._block = block
        self._runs = Tenants(_Run)
        self._run = _Run()  # of nobody yet
        super().__init__(engine, vocabulary, row)

    def _forget(self) -> None:
        super()._forget()
        self._logits: Float32Array | None = None  # of this round, f32[guesses, V]

    @property
    def seconds(self) -> float:
        """Of a guess: the call's share, as many as are right of one that begins well; nothing once
        the call was made."""
        return self._seconds / self._run.mean if self._logits is None else 0.0

    def commit(self, outcome: Outcome) -> None:
        """Keep the target's states, and count how many guesses were right."""
        super().commit(outcome)
        if self._logits is not None:
            best = self._logits.argmax(axis=1)
            ids = best if self._vocabulary is None else self._vocabulary[best]
            pairs = zip(ids.tolist(), outcome.tokens, strict=False)
            right = next((n for n, (guess, token) in enumerate(pairs) if guess != token), None)
            run = min(len(ids), len(outcome.tokens)) if right is None else right
            if run:
                self._run.mean += _SMOOTHING * (run - self._run.mean)
        self._logits = None

    def guesses(self, place: Place) -> list[Guess]:
        """The likeliest tokens at that depth by the head; none beyond its block, or its context."""
        if not self._is_told() or self._entry(self._block.size) > self.engine.spec.max_length:
            return []
        if self._logits is None:
            self._logits = self._guess()
        if len(place) >= len(self._logits):
            return []
        return self._chosen(self._logits[len(place)], place)

    def _guess(self) -> Float32Array:
        """Logits of the tokens after the context, f32[guesses, V]."""
        block = [self._context[-1], *[self._block.mask_token] * (self._block.size - 1)]
        new = len(self._context) - 1 - self._read
        with self._timing(max(new - self._block.size, 0)):  # a round's own text is no reading
            *pieces, (begin, states) = self._unread(PREFILL_WIDTH)
            for earlier, some in pieces:
                self._call(_UNREAD * len(some), earlier - self._first, states=_given(some))
            scores = self._call(
                _UNREAD * len(states) + block,
                begin - self._first,
                states=_given(states),
                block=len(block),
            )
        return scores.logits()[0, self._block.first_guess :].copy()

    def reset(self, request: Request) -> None:
        """The next context is of a new sequence, and what is learnt of it its tenant's."""
        super().reset(request)
        self._run = self._runs.of(request.tenant)

    def _in_row(self, row: int) -> Self:
        other = type(self)(self.engine, self._block, self._vocabulary, row)
        other._runs, other._run = self._runs, self._run
        return other


def _given(states: Float32Array) -> dict[str, Float32Array]:
    return {"features": states[None]}
