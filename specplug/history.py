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

    def __len__(self) -> int:
        """Tokens kept."""
        return sum(map(_tokens, self._tenants.values()))

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
                self._tenants.popitem(last=False)
            texts = self._tenants.setdefault(tenant, [])
            self._tenants.move_to_end(tenant)
            share = self.most_tokens // len(self._tenants)
            half = max(share, self.most_tokens - len(self) + _tokens(texts)) // 2
            if half:
                if not texts or texts[-1].tokens + len(tokens) + 1 > half:
                    texts.append(SuffixAutomaton())
                    del texts[:-2]
                texts[-1].extend([*tokens[max(len(tokens) - half + 1, 0) :], _BETWEEN_TEXTS])
            while len(self) > self.most_tokens:
                del next(kept for kept in self._tenants.values() if _tokens(kept) > share)[0]
            for one in [one for one, kept in self._tenants.items() if not kept]:
                del self._tenants[one]

    def forget(self, tenant: str | None = None) -> None:
        """Drop a tenant's texts, or all."""
        with self.lock:
            if tenant is None:
                self._tenants.clear()
            else:
                self._tenants.pop(tenant, None)


def _tokens(texts: Sequence[SuffixAutomaton]) -> int:
    return sum(text.tokens for text in texts)
