"""What guesses the next token at any node of a draft; several are merged into one tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any

from specplug.drafters.chances import Kind
from specplug.types import Float64Array, Int64Array, Outcome, Request, Scores, SpecplugError


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come next."""

    token: int
    kind: Kind
    """What the source's confidence depends on; the chance of each kind is learnt."""
    drawn_from: Float64Array | None = None
    """What the token was drawn from, f64[V]; None: it was not drawn."""


_SHORT = 4  # tokens of a call whose time counts as that of a guess
SMOOTHING = 0.2
"""Of what is measured of guesses, by the latest one."""

ANY: Kind = "any"
"""The kind of a costly source's next guess, before it is known."""


class Source:
    """Where guesses come from. A *place* is whatever it needs to know of a context; None: lost.

    The base is always lost, and notes nothing: a source says what it does otherwise.
    """

    name: str
    """What errors and reports call it: its class's name, unless it says another."""
    reading_seconds: float = 0.0
    """What reading the context took since :meth:`begin`."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "name") and "name" not in get_annotations(cls):
            cls.name = cls.__name__

    @property
    def seconds(self) -> float:
        """What the guesses at a place cost; 0: next to nothing."""
        return 0.0

    def begin(self, context: Int64Array) -> Any:
        """The place of a context's end, i64[n]; of the same sequence as before, and longer."""
        return None

    def step(self, place: Any, token: int) -> Any:
        """The place after one token more."""
        return None

    def guesses(self, place: Any) -> Sequence[Guess]:
        """What may come next, likeliest first; may be empty."""
        return ()

    def prior(self, kind: Kind) -> float:
        """The chance of a guess of a kind that was never seen, in (0, 1)."""
        return 0.5

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """The target has read committed tokens; see :meth:`specplug.types.Drafter.observe`."""

    def commit(self, outcome: Outcome) -> None:
        """A round's outcome, whoever guessed."""

    def reset(self, request: Request) -> None:
        """Forget the sequence; the next context is of a new one."""

    def clear(self) -> None:
        """Clear the row of its engine's cache: a call went wrong there. After :meth:`reset`."""

    def finish(self, request: Request, tokens: Int64Array) -> None:
        """A request's sequence is complete; another one may have begun."""

    def fork(self) -> Source:
        """One for another sequence at the same time; see :meth:`specplug.types.Drafter.fork`."""
        raise SpecplugError(f"source {self.name!r} cannot serve several sequences: it has no fork")

    def close(self) -> None:
        """Release what it holds, and its forks with it."""


class CalledSource(Source):
    """A source whose guesses are calls of an engine: what they cost is measured."""

    _seconds = 0.0

    @property
    def seconds(self) -> float:
        """Of a guess, as measured of late."""
        return self._seconds

    def _timed(self, seconds: float, width: int) -> None:
        """A guess took so long, over a call of so many tokens; with many it was reading."""
        if width <= _SHORT:
            self._seconds += SMOOTHING * (seconds - self._seconds) if self._seconds else seconds
        else:
            self.reading_seconds += seconds
