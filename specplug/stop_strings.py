"""Stop strings in a text that comes in pieces.

Each character is read once, however long the stop strings are and however much of them the text has
(Knuth, Morris and Pratt 1977).
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Reads a text and tells where the first stop string in it ends.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._patterns = [_Pattern(stop) for stop in dict.fromkeys(stops)]
        self._matched = [0] * len(self._patterns)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    @property
    def begun(self) -> int:
        """Characters of the text's end that may be the beginning of a stop string."""
        return max(self._matched, default=0)

    def read(self, text: str, begin: int, exempt: int) -> tuple[int, int] | None:
        """Read the next piece of the text.

        Args:
            text: the piece.
            begin: characters of the text before it.
            exempt: characters of the text within which no stop string ends.

        Returns:
            Where in the text the first stop string ends and begins; of those that end there the
            longest. None: there is none.
        """
        found = []
        for index, pattern in enumerate(self._patterns):
            self._matched[index], end = pattern.read(
                text, self._matched[index], max(0, exempt - begin)
            )
            if end is not None:
                found.append((begin + end, begin + end - len(pattern.text)))
        return min(found, default=None)

    def peek(self, text: str, begin: int, exempt: int) -> tuple[int, int] | None:
        """As :meth:`read`, of a piece that may yet turn out to be another."""
        matched = [*self._matched]
        found = self.read(text, begin, exempt)
        self._matched = matched
        return found


class _Pattern:
    def __init__(self, text: str) -> None:
        self.text = text
        # Of each beginning that a text had so far, the longest shorter one that it ends with.
        self._borders = [0, 0]

    def read(self, text: str, matched: int, exempt: int) -> tuple[int, int | None]:
        """How much of the pattern the text ends with, and where in the text it first was whole.

        Args:
            text: the next piece.
            matched: how much of the pattern the text before ended with.
            exempt: characters of the piece within which the pattern may end.
        """
        own, borders = self.text, self._borders
        place, length = 0, len(text)
        while place < length:
            if not matched:
                place = text.find(own[0], place)
                if place < 0:
                    break
            one = text[place]
            while matched and own[matched] != one:
                matched = borders[matched]
            if own[matched] == one:
                matched += 1
            place += 1
            if matched == len(borders):
                self._lengthen()
            if matched == len(own):
                if place > exempt:
                    return borders[matched], place
                matched = borders[matched]
        return matched, None

    def _lengthen(self) -> None:
        """The border of the next longer beginning."""
        own, borders = self.text, self._borders
        last = len(borders) - 1
        border = borders[last]
        while border and own[border] != own[last]:
            border = borders[border]
        borders.append(border + (own[border] == own[last]))
