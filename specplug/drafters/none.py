"""No drafts: plain decoding through the very same loop."""

from __future__ import annotations

from specplug.types import Drafter


class NoDrafter(Drafter):
    """Proposes nothing, so that every round is one token of the target's own."""

    name = "none"

    def fork(self) -> NoDrafter:
        """Itself: it remembers nothing."""
        return self
