"""Where the end of one text stands in another: what lookup drafters begin with."""

from __future__ import annotations

import numpy as np

from specplug.types import Int64Array


def longest_matches(
    text: Int64Array, context: Int64Array, longest: int, first: int = 0
) -> tuple[Int64Array, int]:
    """Find the longest suffix of a context in a text.

    Args:
        text: i64[n].
        context: i64[m], at least one token.
        longest: matches are not lengthened beyond this.
        first: matches that end before this index do not count.

    Returns:
        The indices in the text where such matches end, ascending, i64[k], and their length; 0 if
        the context's last token is not there.
    """
    end = len(context) - 1
    ends = np.flatnonzero(text[first:] == context[end]) + first
    length = 1 if len(ends) else 0
    while 0 < length < min(longest, len(context)):
        reaching = ends[ends >= length]  # the others begin with the text
        longer = reaching[text[reaching - length] == context[end - length]]
        if not len(longer):
            break
        ends, length = longer, length + 1
    return ends, length
