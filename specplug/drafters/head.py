"""A learned head guesses from what the target thinks: its hidden states (arXiv:2503.01840)."""

from __future__ import annotations

import numpy as np

from specplug.drafters.source import Guess
from specplug.drafters.states import Place, StatesSource
from specplug.feeding import PREFILL_WIDTH
from specplug.types import HIDDEN_STATES, Float32Array, Outcome, Scores

_MOST_STEPS = 2  # to catch up with tokens that others drafted


class HeadSource(StatesSource):
    """One call of a head a guess.

    The head's entry for position i is made of the token at i + 1 and of a hidden state of position
    i: the target's, which every call of the target gives, or where that token is only drafted, the
    one that the head's own last call gave, ``fed_back``. So the entries of drafted tokens are made
    anew once these are text, and a path of a tree is a run of entries that the next path
    overwrites.
    """

    def _forget(self) -> None:
        super()._forget()
        self._forget_drafts()

    def _forget_drafts(self) -> None:
        self._drafted: Place = ()  # what its cache holds after the context's entries
        self._known: dict[Place, Float32Array] = {}  # its own hidden states by path
        self._logits: dict[Place, Float32Array] = {}

    def commit(self, outcome: Outcome) -> None:
        """Keep the target's states of the drafted tokens that were accepted."""
        super().commit(outcome)
        self._forget_drafts()

    def guesses(self, place: Place) -> list[Guess]:
        """The likeliest tokens by the head; none where its context ends, or far from its path."""
        if not self._is_told():
            return []  # this generation is not one that it was told of
        unknown = sum(place[:depth] not in self._known for depth in range(len(place) + 1))
        if unknown > _MOST_STEPS or self._entry(len(place)) > self.engine.spec.max_length:
            return []
        if not self._known:
            self._read_context()
        for depth in range(len(place) + 1):
            if place[:depth] not in self._known:
                self._follow(place[:depth])
        return self._chosen(self._logits[place], place)

    def _read_context(self) -> None:
        """Make the entries of what became text since the last time."""
        with self._timing(len(self._context) - 1 - self._read):
            for begin, states in self._unread(PREFILL_WIDTH):
                tokens = self._context[begin + 1 : begin + 1 + len(states)]
                given = {"features": states[None]}
                self._keep(self._call(tokens, begin - self._first, states=given), ())

    def _follow(self, place: Place) -> None:
        """Make the entries of a path, from where the cache holds another one."""
        kept = 0
        while kept < min(len(self._drafted), len(place) - 1):
            if self._drafted[kept] != place[kept]:
                break
            kept += 1
        with self._timing(len(place) - kept):
            states = np.stack([self._known[place[:depth]] for depth in range(kept, len(place))])
            given = {"fed_back": states[None]}
            self._keep(self._call(place[kept:], self._entry(kept), states=given), place)
            self._drafted = place

    def _keep(self, scores: Scores, place: Place) -> None:
        """What the head said last of a path."""
        self._known[place] = scores.hidden(HIDDEN_STATES)[0, -1].copy()
        self._logits[place] = scores.logits()[0, 0].copy()
