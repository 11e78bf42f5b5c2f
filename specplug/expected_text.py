"""An expected text with an index, which finds where an answer stands in it."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence

import numpy as np

from specplug.types import Int64Array

LONGEST = 12  # tokens of a match that is sought


class ExpectedText:
    """What an answer is expected to be.

    To make it takes time in proportion to n log n, about 0.2 s for 250,000 tokens, and up to 4 n
    bytes for each of 12 lengths of a match. To look something up then takes time in proportion to
    log n, whatever the text is: a text that repeats one line often would otherwise be gone through
    again for each token of an answer that left it.

    Args:
        tokens: i64[n].
    """

    def __init__(self, tokens: Sequence[int] | Int64Array) -> None:
        self.tokens: Int64Array = np.asarray(tokens, dtype=np.int64)
        self._orders = _orders(self.tokens[:-1])  # a match at the very end expects nothing

    def after(self, answer: Int64Array, place: int) -> tuple[int, int] | None:
        """Where an answer i64[m] goes on in the text.

        That is after the longest match of the answer's last tokens, of up to 12; of several after
        the nearest one that ends at ``place`` or later, else after the last one.

        Returns:
            The index of the next token, and the length of the match; None: there is no match.
        """
        sought = answer[-LONGEST:][::-1].tolist()
        if not self._orders or not sought:
            return None
        by_most = self._orders[-1]
        nearest = bisect_left(by_most, sought, key=self._before)
        length = max(
            _common(self._before(end), sought) for end in by_most[max(nearest - 1, 0) : nearest + 1]
        )
        if not length:
            return None
        sought = sought[:length]

        def begin(end: int) -> list[int]:
            return self._before(end)[:length]

        first = bisect_left(by_most, sought, key=begin)
        last = bisect_right(by_most, sought, key=begin)
        ends = self._orders[min(length, len(self._orders)) - 1][first:last]  # ascending
        ahead = int(np.searchsorted(ends, place))
        return int(ends[ahead] if ahead < len(ends) else ends[-1]) + 1, length

    def _before(self, end: int) -> list[int]:
        """The tokens up to an index, the latest first."""
        tokens: list[int] = self.tokens[max(int(end) - LONGEST + 1, 0) : int(end) + 1].tolist()
        tokens.reverse()
        return tokens


def _orders(tokens: Int64Array) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    """All indices of a text i64[n], by the 1, 2, … 12 tokens that end there, the latest first.

    Those of equal tokens are ascending, and stand at the same places in each of the orders. Orders
    after the last one would be equal to it.
    """
    count = len(tokens)
    if not count:
        return []
    ranks = np.unique(tokens, return_inverse=True)[1].reshape(count) + 1  # 0: before the text
    kinds = np.zeros(count, dtype=np.int64)  # equal where the tokens so far are
    orders = []
    for back in range(min(LONGEST, count)):
        earlier = np.zeros(count, dtype=np.int64)
        earlier[back:] = ranks[: count - back]
        keys = kinds * (count + 1) + earlier
        order = np.argsort(keys, kind="stable")
        ordered = keys[order]
        differs = np.concatenate(([False], ordered[1:] != ordered[:-1]))
        kinds[order] = np.cumsum(differs)
        orders.append(order.astype(np.int32))
        if differs[1:].all():
            break
    return orders


def _common(one: list[int], other: list[int]) -> int:
    """How many of their first tokens are equal."""
    for index, (mine, yours) in enumerate(zip(one, other, strict=False)):
        if mine != yours:
            return index
    return min(len(one), len(other))
