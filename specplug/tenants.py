"""What is learnt from texts, apart by tenant and bounded: nobody's drafts tell what others wrote.

What is kept changes how fast an answer comes, never what it says. So what has no room is forgotten:
of a tenant what was noted the longest ago, and of all tenants the one that asked the longest ago.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from specplug.arguments import checked

MOST_TENANTS = 256
"""Whose learnt state is kept at a time; who was forgotten learns anew."""

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Tenants(Generic[T]):
    """A state of each tenant, made when it is first asked for. For one thread at a time.

    Args:
        make: a state that has learnt nothing.
        most: tenants that are remembered, at least 1.
    """

    @checked()
    def __init__(self, make: Callable[[], T], most: int = MOST_TENANTS) -> None:
        if most < 1:
            raise ValueError(f"{most} tenants: need at least 1")
        self._make, self.most = make, most
        self._states: OrderedDict[str, T] = OrderedDict()  # who asked the longest ago first

    def __len__(self) -> int:
        """Tenants that are remembered."""
        return len(self._states)

    def __contains__(self, tenant: str) -> bool:
        """Whether a tenant is remembered."""
        return tenant in self._states

    def of(self, tenant: str) -> T:
        """A tenant's state, which is from now on the last to be forgotten.

        Who has it may use it on after it was forgotten here.
        """
        state = self._states.get(tenant)
        if state is None:
            while len(self._states) >= self.most:
                self._states.popitem(last=False)
            state = self._states[tenant] = self._make()
        self._states.move_to_end(tenant)
        return state


class Recent(OrderedDict[K, V]):
    """A mapping of at most so many entries: setting one more drops the one set the longest ago.

    Args:
        most: entries; 0 keeps nothing.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    def __setitem__(self, key: K, value: V) -> None:
        """Set an entry, which is from now on the last to be dropped."""
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > self.most:
            self.popitem(last=False)

    def limit(self, most: int) -> None:
        """Have room for so many entries from now on, and drop what is beyond."""
        self.most = most
        while len(self) > most:
            self.popitem(last=False)


class Tables(Tenants[Recent[K, V]]):
    """A table of each tenant; all of them together have at most so many entries.

    Each tenant may have an equal share of them, which is smaller the more tenants there are, so
    that nobody can crowd out another: a tenant's share depends on the number of the others, not on
    what they have.

    Args:
        entries: of all tenants together, at least one each.
        most: tenants that are remembered.
    """

    @checked()
    def __init__(self, entries: int, most: int = MOST_TENANTS) -> None:
        if entries < most:
            raise ValueError(f"{entries} entries: need one for each of {most} tenants")
        super().__init__(self._new, most)
        self.entries = entries

    def _new(self) -> Recent[K, V]:
        share = self.entries // (len(self._states) + 1)
        for table in self._states.values():
            table.limit(share)
        return Recent(share)
