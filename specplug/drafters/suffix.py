"""What followed the longest context that occurred before, in this text or in earlier ones."""

from __future__ import annotations

from specplug.drafters.chances import Kind
from specplug.drafters.source import Guess, Source
from specplug.history import History
from specplug.suffix_automaton import NOWHERE, Place, SuffixAutomaton
from specplug.types import Int64Array, Request

_MOST_GUESSES = 3


class SuffixSource(Source):
    """The prompt and the answer so far."""

    name = "suffix"

    def __init__(self) -> None:
        self._text = SuffixAutomaton()

    def begin(self, context: Int64Array) -> Place:
        """The place of the context's end."""
        self._text.extend(context[self._text.tokens :].tolist())
        return self._text.end()

    def step(self, place: Place, token: int) -> Place:
        """The place after one token more."""
        return self._text.step(place, token)

    def guesses(self, place: Place) -> list[Guess]:
        """What followed."""
        return _guesses(self._text, place)

    def prior(self, kind: Kind) -> float:
        """The longer the match and the fewer the other continuations, the better."""
        return _prior(kind)

    def fork(self) -> SuffixSource:
        """Of another text."""
        return SuffixSource()

    def reset(self, request: Request) -> None:
        """Forget the text."""
        self._text = SuffixAutomaton()


class HistorySource(Source):
    """The texts of earlier requests of the same tenant.

    Args:
        history: where they are; finished texts are added to it.
    """

    name = "history"

    def __init__(self, history: History) -> None:
        self._history = history
        self._vocab_size = 0
        self._texts: tuple[SuffixAutomaton, ...] = ()
        self._places: list[Place] = []
        self._read = 0

    def begin(self, context: Int64Array) -> list[Place] | None:
        """The place of the context's end in each text; None if there is none."""
        if not self._texts:
            return None
        for token in context[self._read :].tolist():
            self._places = self.step(self._places, token)
        self._read = len(context)
        return self._places

    def step(self, place: list[Place], token: int) -> list[Place]:
        """The places after one token more."""
        with self._history.lock:
            return [text.step(at, token) for text, at in zip(self._texts, place, strict=True)]

    def guesses(self, place: list[Place]) -> list[Guess]:
        """What followed the longest match, in the newest of the texts that have it."""
        longest = max(range(len(place)), key=lambda which: place[which][1])
        if place[longest][1] < _SHORTEST:
            return []
        with self._history.lock:
            found = _guesses(self._texts[longest], place[longest])
        # Texts end with a token that there is not, and may be of another vocabulary.
        return [guess for guess in found if 0 <= guess.token < self._vocab_size]

    def prior(self, kind: Kind) -> float:
        """As in the text itself, at a discount."""
        return 0.8 * _prior(kind)

    def fork(self) -> HistorySource:
        """Over the same history."""
        return HistorySource(self._history)

    def reset(self, request: Request) -> None:
        """Begin anew, with the request's tenant."""
        self._read, self._vocab_size = 0, request.sampler.vocab_size
        self._texts = self._history.texts(request.tenant)
        self._places = [NOWHERE] * len(self._texts)

    def finish(self, request: Request, tokens: Int64Array) -> None:
        """Remember the text."""
        self._history.add(request.tenant, tokens.tolist())


_SHORTEST = 2  # tokens of a match in other texts


def _guesses(text: SuffixAutomaton, place: Place) -> list[Guess]:
    """The likeliest continuations of a place; their kind is (rank, share, length, times)."""
    return [
        Guess(token, (rank, 4 * times // total, _octave(length), min(total, 3)))
        for rank, (token, times, total, length) in enumerate(
            text.continuations(place)[:_MOST_GUESSES]
        )
    ]


def _prior(kind: Kind) -> float:
    assert isinstance(kind, tuple)
    _, quarters, length, _ = kind
    return float(min(0.15 + 0.17 * length, 0.9) * (quarters + 0.5) / 4.5)


def _octave(length: int) -> int:
    """0 for a match of one token, 1 for two, 2 for three and four, 3 up to eight, 4 up to 16, 5."""
    return min((length - 1).bit_length(), 5)
