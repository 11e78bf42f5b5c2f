"""What the caller expects as the answer, such as the file that is to be edited."""

from __future__ import annotations

from specplug.drafters.chances import Kind
from specplug.drafters.source import Guess, Source
from specplug.expected_text import ExpectedText
from specplug.types import Int64Array, Request

_PRIOR = (0.4, 0.35, 0.6, 0.8, 0.9, 0.95)

Place = tuple[int, int]
"""The index of the expected token, and how many before it came true in a row."""


class PredictedSource(Source):
    """Follows the expected text, and finds its place again after the answer left it.

    After an edit the answer goes on somewhere in the expected text: where the longest match of its
    last tokens ends, and of several the nearest one after the place where the two parted.
    """

    name = "predicted"

    def __init__(self) -> None:
        self._text = ExpectedText(())
        self._expected = self._text.tokens
        self._prompt_tokens = self._read = 0
        self._place: Place = (0, 0)

    def fork(self) -> PredictedSource:
        """Of another expected text."""
        return PredictedSource()

    def reset(self, request: Request) -> None:
        """Expect what the request predicts."""
        self._text = request.expected or ExpectedText(request.prediction)
        self._expected = self._text.tokens
        self._prompt_tokens = self._read = request.prompt_tokens
        self._place = (0, 0)

    def begin(self, context: Int64Array) -> Place | None:
        """Where the answer stands in the expected text; None: nowhere."""
        if not len(self._expected):
            return None
        for token in context[self._read :].tolist():
            self._place = self.step(self._place, token) or (self._place[0], -1)
        self._read = len(context)
        if self._place[1] < 0:
            found = self._text.after(context[self._prompt_tokens :], self._place[0])
            if found is None:
                return None
            self._place = found
        return self._place

    def step(self, place: Place, token: int) -> Place | None:
        """One further, if the token is the expected one."""
        index, right = place
        if right < 0 or index >= len(self._expected) or self._expected[index] != token:
            return None
        return index + 1, right + 1

    def guesses(self, place: Place) -> list[Guess]:
        """The expected token; its kind is how long it went well."""
        index, right = place
        if index >= len(self._expected):
            return []
        return [Guess(int(self._expected[index]), right.bit_length())]

    def prior(self, kind: Kind) -> float:
        """The longer it went well, the better."""
        assert isinstance(kind, int)
        return _PRIOR[min(kind, len(_PRIOR) - 1)]
