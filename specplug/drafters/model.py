"""A second, smaller engine proposes what the target will probably say."""

from __future__ import annotations

from collections.abc import Sequence

from specplug.feeding import feed
from specplug.sampler import Sampler
from specplug.types import Engine, Float64Array, Int64Array, Proposal


class ModelDrafter:
    """Drafts with a draft model, one call a token; each call reads one cache.

    Tokens are chosen as the target chooses its own, by the generation's sampler. The vocabularies
    may differ by padding, rows of the embedding table that no token has: ids that the target does
    not have are never drafted.

    Args:
        engine: the draft model.

    The drafter only remembers how many of the context's tokens its cache holds. Rejected drafts
    need no undoing: the next call names the length up to which cache and context agree.
    """

    name = "draft"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._cached = 0  # entries of the cache that belong to the context
        self._drafted: list[int] = []  # what the cache holds after them

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """``k`` tokens; fewer where the draft model's context ends or does not know a token."""
        limit = self.engine.spec.context_limit
        self._cached = min(self._cached, len(context) - 1)  # the last token is always fed
        drafted: list[int] = []
        probabilities: list[Float64Array] = []
        pending: Sequence[int] = context[self._cached :].tolist()
        past = self._cached
        if max(pending) >= self.engine.spec.vocab_size:
            return Proposal()
        while len(drafted) < k and past + len(pending) <= limit:
            scores = feed(self.engine, pending, past=past, scored=1)
            past += len(pending)
            token, drawn_from = self._sampler.draft(scores, context, drafted)
            pending = [token]
            drafted.append(token)
            if drawn_from is not None:
                probabilities.append(drawn_from)
        if drafted:
            self._cached = len(context)
            self._drafted = drafted[:-1]  # the last was never fed
        return Proposal(tuple(drafted), probabilities or None)

    def commit(self, tokens: Sequence[int]) -> None:
        """Keep the cache entries of the drafted tokens that became text."""
        for committed, drafted in zip(tokens, self._drafted, strict=False):
            if committed != drafted:
                break
            self._cached += 1
        self._drafted = []

    def reset(self, sampler: Sampler) -> None:
        """The next proposal starts a new sequence."""
        self._sampler = sampler
        self._cached = 0
        self._drafted = []

    def close(self) -> None:
        """Release the draft model."""
        self.engine.close()
