"""A suffix automaton that grows: which contexts occurred before, what followed them, how often.

Blumer et al., "The smallest automaton recognizing the subwords of a text", 1985. A state stands for
contexts that end at the same places of the text; its suffix link leads to the longest shorter
context that ends at more places. Extending by a token takes amortised constant time, and a text of
n tokens has at most 2n states.
"""

from __future__ import annotations

from collections.abc import Iterable

ROOT = 0
_COUNTED = 12  # contexts a token, longest first, whose occurrences are counted
_MOST_BRANCHES = 48  # a context with more continuations than this tells nothing

Place = tuple[int, int]
"""A state, and how many tokens of context were matched to reach it."""
NOWHERE: Place = (ROOT, 0)


class SuffixAutomaton:
    """All contexts of a text, each with what followed it."""

    __slots__ = ("_count", "_last", "_length", "_link", "_next", "tokens")

    def __init__(self) -> None:
        self._next: list[dict[int, int]] = [{}]
        self._link = [-1]
        self._length = [0]  # of the longest context of a state
        self._count = [0]
        self._last = ROOT
        self.tokens = 0
        """How many the text has."""

    def extend(self, tokens: Iterable[int]) -> None:
        """Append to the text."""
        following, link, length, count = self._next, self._link, self._length, self._count
        last = self._last
        for token in tokens:
            new = len(following)
            following.append({})
            length.append(length[last] + 1)
            link.append(ROOT)
            count.append(0)
            while last >= 0 and token not in following[last]:
                following[last][token] = new
                last = link[last]
            if last >= 0:
                link[new] = self._context(last, token)
            last = state = new
            for _ in range(_COUNTED):
                count[state] += 1
                state = link[state]
                if state <= ROOT:
                    break
            self.tokens += 1
        self._last = last

    def _context(self, state: int, token: int) -> int:
        """The state of ``state``'s longest context with a token after it, split off if need be."""
        following, link, length = self._next, self._link, self._length
        found = following[state][token]
        if length[found] == length[state] + 1:
            return found
        split = len(following)
        following.append(following[found].copy())
        length.append(length[state] + 1)
        link.append(link[found])
        self._count.append(self._count[found])
        link[found] = split
        while state >= 0 and following[state].get(token) == found:
            following[state][token] = split
            state = link[state]
        return split

    def end(self) -> Place:
        """The longest context of the text's end that occurred before."""
        state = max(self._link[self._last], ROOT)
        return state, self._length[state]

    def step(self, place: Place, token: int) -> Place:
        """The longest context of a place's and a token after it that occurs in the text."""
        state, matched = place
        link, length = self._link, self._length
        while state > ROOT and length[link[state]] >= matched:
            state = link[state]  # split since the place was taken
        while token not in self._next[state]:
            state = link[state]
            if state < 0:
                return NOWHERE
            matched = length[state]
        return self._next[state][token], matched + 1

    def continuations(self, place: Place) -> list[tuple[int, int, int, int]]:
        """What followed a place's context, likeliest first.

        Returns:
            Pairs of a token and how often it followed, of the longest context that has any; each
            with the number of all that followed, and the length of the context.
        """
        state, matched = place
        following, link, length, count = self._next, self._link, self._length, self._count
        while not following[state]:  # the text's very end
            state = link[state]
            if state <= ROOT:
                return []
            matched = length[state]
        branches = following[state]
        if state == ROOT or len(branches) > _MOST_BRANCHES:
            return []
        if len(branches) == 1:
            ((token, target),) = branches.items()
            return [(token, count[target], count[target], matched)]
        found = [(count[target], target, token) for token, target in branches.items()]
        found.sort(reverse=True)
        total = sum(times for times, _, _ in found)
        return [(token, times, total, matched) for times, _, token in found]
