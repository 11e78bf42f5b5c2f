"""The rows of a batch, each by itself: what it drafts, its scores, and what goes wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from specplug.budget import Budget
from specplug.controller import DraftLength
from specplug.engine_calls import is_failure
from specplug.generation import Generation
from specplug.sampling import NoNumbersError
from specplug.types import (
    EngineError,
    Float32Array,
    Int64Array,
    Proposal,
    Scores,
    Verdict,
)

_LENIENCE = 0.5  # a row may draft what would pay at this share of the rate
_UNKNOWN_CHANCE = 0.7  # of a drafted token after accepted ones, where the drafter says nothing


class RowScores:
    """A row of a batch's scores, as if it had been alone; see :class:`specplug.types.Scores`."""

    def __init__(self, scores: Scores, row: int) -> None:
        self._scores, self._row = scores, slice(row, row + 1)

    def argmax(self) -> Int64Array:
        """The row's best tokens, i64[1, T']."""
        return self._scores.argmax()[self._row]

    def logits(self) -> Float32Array:
        """The row's logits, f32[1, T', V]."""
        return self._scores.logits()[self._row]

    def hidden(self, name: str) -> Float32Array:
        """The row's hidden states, f32[1, T, D]."""
        return self._scores.hidden(name)[self._row]


def by_length(
    rows: Sequence[Generation], length_of: Callable[[Generation], DraftLength]
) -> list[tuple[DraftLength, list[int]]]:
    """The numbers of the rows that have the same length: each tenant's, where it is learnt."""
    found: dict[int, tuple[DraftLength, list[int]]] = {}
    for number, generation in enumerate(rows):
        length = length_of(generation)
        found.setdefault(id(length), (length, []))[1].append(number)
    return [*found.values()]


def propose_all(rows: Sequence[Generation], budget: Budget | None) -> list[Proposal]:
    """What each row drafts: as many tokens as pay for the whole call."""
    if budget is None or len(rows) == 1:
        return [_draft(generation, budget) for generation in rows]
    # A row's sure tokens may pay for a call as wide as makes another's less sure ones free.
    lenient = replace(budget, rate=_LENIENCE * budget.rate)
    proposals = [_draft(generation, lenient) for generation in rows]
    worth = np.zeros(budget.most)  # of the n-th drafted tokens of all rows, a row
    for proposal in proposals:
        reaches = proposal.reaches
        if reaches is None:
            reaches = tuple(_UNKNOWN_CHANCE ** (n + 1) for n in range(len(proposal)))
        worth[: len(reaches)] += np.array(reaches) / len(rows)
    longest = budget.size(worth.tolist())
    return [proposal.shortened(longest) for proposal in proposals]


def _draft(generation: Generation, budget: Budget | None) -> Proposal:
    """What a row drafts; a drafter that fails ends its own row alone."""
    try:
        return generation.propose(_of_row(budget, generation))
    except BaseException as error:
        if not is_failure(error):
            raise
        generation.fail(error)
        return Proposal()


def _of_row(budget: Budget | None, generation: Generation) -> Budget | None:
    """A budget for one row, which may be near its end, or does not draft."""
    most = min(budget.most, generation.context.room - 1) if budget and generation.drafts else 0
    return replace(budget, most=most) if budget and most > 0 else None


def attempt(
    judge: Callable[[], tuple[Scores, Verdict]],
) -> tuple[Scores, Verdict] | BaseException:
    """The backend's failure is everybody's; any other is the row's, and scores that are no numbers
    are those of one row."""
    try:
        return judge()
    except NoNumbersError as error:
        return error
    except EngineError:
        raise
    except BaseException as error:
        if not is_failure(error):
            raise
        return error
