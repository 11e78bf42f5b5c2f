"""Texts of earlier requests, for lookup: bounded, apart by tenant, and never part of an answer.

What is kept changes how fast an answer comes, never what it says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from specplug.arguments import checked
from specplug.suffix_automaton import SuffixAutomaton

DEFAULT_TOKENS = 100_000
"""Of all tenants together; a token takes about a kilobyte."""

_BETWEEN_TEXTS = -1  # matches no token


class History:
    """What was asked and answered before.

    Texts are written into the newest of a tenant's two automata. When that is half of what the
    tenant may have, the older one is dropped. Tenants that were not heard of for the longest are
    forgotten when all together have too much. May be shared by decoders in several threads.

    Args:
        most_tokens: kept at most; 0 keeps nothing.
    """

    @checked()
    def __init__(self, most_tokens: int = DEFAULT_TOKENS) -> None:
        if most_tokens < 0:
            raise ValueError(f"history of {most_tokens} tokens: need 0 or more")
        self.most_tokens = most_tokens
        self.lock = Lock()
        """Held while automata are read or written."""
        self._tenants: OrderedDict[str, list[SuffixAutomaton]] = OrderedDict()

    def __len__(self) -> int:
        """Tokens kept."""
        return sum(text.tokens for texts in self._tenants.values() for text in texts)

    def texts(self, tenant: str) -> tuple[SuffixAutomaton, ...]:
        """A tenant's automata, the newest first; hold the lock while using them."""
        with self.lock:
            return tuple(reversed(self._tenants.get(tenant, ())))

    def add(self, tenant: str, tokens: Sequence[int]) -> None:
        """Remember a text, its end if it is longer than what may be kept."""
        half = self.most_tokens // 2
        if not half or not tokens:
            return
        with self.lock:
            texts = self._tenants.setdefault(tenant, [])
            self._tenants.move_to_end(tenant)
            if not texts or texts[-1].tokens + len(tokens) + 1 > half:
                texts.append(SuffixAutomaton())
                del texts[:-2]
            texts[-1].extend([*tokens[max(len(tokens) - half + 1, 0) :], _BETWEEN_TEXTS])
            while len(self) > self.most_tokens and len(self._tenants) > 1:
                self._tenants.popitem(last=False)

    def forget(self, tenant: str | None = None) -> None:
        """Drop a tenant's texts, or all."""
        with self.lock:
            if tenant is None:
                self._tenants.clear()
            else:
                self._tenants.pop(tenant, None)
