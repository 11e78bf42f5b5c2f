"""No drafts: plain decoding through the very same loop."""

from __future__ import annotations

from collections.abc import Sequence

from specplug.sampler import Sampler
from specplug.types import Int64Array, Proposal


class NoDrafter:
    """Proposes nothing, so that every round is one token of the target's own."""

    name = "none"

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """An empty proposal."""
        return Proposal()

    def commit(self, tokens: Sequence[int]) -> None:
        """Nothing to note."""

    def reset(self, sampler: Sampler) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to release."""
