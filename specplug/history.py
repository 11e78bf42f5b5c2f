"""Texts of earlier requests, for lookup: bounded, apart by tenant, and never part of an answer.

What is kept changes how fast an answer comes, never what it says.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from threading import Lock

from specplug.arguments import checked
from specplug.suffix_automaton import SuffixAutomaton
from specplug.tenants import MOST_TENANTS

DEFAULT_TOKENS = 100_000
"""Of all tenants together; a token takes about a kilobyte."""

_BETWEEN_TEXTS = -1  # matches no token


class History:
    """What was asked and answered before.

    Texts are written into the newest of a tenant's two automata. When that is half of what the
    tenant may have, the older one is dropped. A tenant may have what the others leave, and an equal
    share at least: when all together have too much, one that has more than its share loses its
    older automaton, first the one that wrote the longest ago. So no tenant can make another one
    forget texts that fit in its share. Of more than :data:`~specplug.tenants.MOST_TENANTS` the one
    that wrote the longest ago is forgotten. May be shared by decoders in several threads.

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
        self._kept: dict[str, int] = {}  # tokens, by tenant
        self._total = 0  # of all of them

    def __len__(self) -> int:
        """Tokens kept."""
        return self._total

    def texts(self, tenant: str) -> tuple[SuffixAutomaton, ...]:
        """A tenant's automata, the newest first; hold the lock while using them."""
        with self.lock:
            return tuple(reversed(self._tenants.get(tenant, ())))

    def add(self, tenant: str, tokens: Sequence[int]) -> None:
        """Remember a text, its end if it is longer than what may be kept."""
        if not tokens:
            return
        with self.lock:
            if tenant not in self._tenants and len(self._tenants) == MOST_TENANTS:
                self._drop(next(iter(self._tenants)))
            texts = self._tenants.setdefault(tenant, [])
            self._tenants.move_to_end(tenant)
            share = self.most_tokens // len(self._tenants)
            others = self._total - self._kept.get(tenant, 0)
            half = max(share, self.most_tokens - others) // 2
            if half:
                if not texts or texts[-1].tokens + len(tokens) + 1 > half:
                    texts.append(SuffixAutomaton())
                    del texts[:-2]
                texts[-1].extend([*tokens[max(len(tokens) - half + 1, 0) :], _BETWEEN_TEXTS])
            self._count(tenant)
            while self._total > self.most_tokens:
                more = next(one for one in self._tenants if self._kept[one] > share)
                del self._tenants[more][0]
                self._count(more)

    def _count(self, tenant: str) -> None:
        """A tenant's texts have changed; without any it is forgotten."""
        texts = self._tenants[tenant]
        kept = sum(text.tokens for text in texts)
        self._total += kept - self._kept.get(tenant, 0)
        self._kept[tenant] = kept
        if not texts:
            self._drop(tenant)

    def _drop(self, tenant: str) -> None:
        self._tenants.pop(tenant, None)
        self._total -= self._kept.pop(tenant, 0)

    def forget(self, tenant: str | None = None) -> None:
        """Drop a tenant's texts, or all."""
        with self.lock:
            for one in [*self._tenants] if tenant is None else [tenant]:
                self._drop(one)
