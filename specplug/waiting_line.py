"""Whose prompt gets the next free row, and whose prompt is read next: tenants take turns.

Two rules divide what tenants share:

- **Rows.** A free row goes to the tenant that holds the fewest rows; among several such tenants, to
  one that never got a row, or else got it the longest ago. So no tenant goes twice before one that
  waits and has no row.
- **Pieces.** A step reads one piece of one prompt. Tenants whose prompts have a row take turns, so
  each of ``T`` tenants gets at least every ``T``-th piece.

Within a tenant it is first come, first served, with one exception: a prompt may begin beside those
before it if it is at most half as long as what is left to read of each of them. The tenant's pieces
then go in turn to its prompt with the fewest pieces left and to its oldest one. So short prompts
overtake long ones, and a long one still gets every second piece of its tenant.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

from specplug.generation import Generation
from specplug.prefixes import PIECE

_REMEMBERED = 1024  # tenants; those that were served before them count as never served
_LOOKAHEAD = 64  # prompts of a tenant's queue that may overtake: bounds the search in each step


@dataclass(eq=False, slots=True)
class _Ticket:
    number: int  # later ones are higher
    generation: Generation

    @property
    def pieces(self) -> int:
        """Calls of the target that the rest of the prompt takes."""
        generation = self.generation
        return -(-(len(generation.prompt) - generation.context.cached) // PIECE)


@dataclass(eq=False, slots=True)
class _Tenant:
    waiting: deque[_Ticket] = field(default_factory=deque)
    reading: list[_Ticket] = field(default_factory=list)
    oldest_is_next: bool = False

    def next_to_begin(self) -> _Ticket | None:
        """The first waiting prompt that need not wait for those being read."""
        for ticket in islice(self.waiting, _LOOKAHEAD):
            earlier = [one for one in self.reading if one.number < ticket.number]
            if all(2 * ticket.pieces <= one.pieces for one in earlier):
                return ticket
        return None

    def next_to_read(self) -> _Ticket:
        """The oldest of the prompts being read and the one nearest to its end, by turns."""
        oldest = self.oldest_is_next
        self.oldest_is_next = not oldest
        return min(self.reading, key=lambda one: one.number if oldest else (one.pieces, one.number))


class WaitingLine:
    """Generations whose prompt waits for a row or is being read; see the module for the order.

    :meth:`append`, :attr:`waiting`, :attr:`reading` and ``len`` may be used from any thread, the
    other methods from the decoding thread alone.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tickets = 0
        self._tenants: dict[str, _Tenant] = {}
        self._served: dict[str, None] = {}  # tenants that got a row, also long ago; the latest last
        self._turns: dict[str, None] = {}  # tenants that read, the longest without a piece first

    def __len__(self) -> int:
        with self._lock:
            return sum(len(one.waiting) + len(one.reading) for one in self._tenants.values())

    @property
    def waiting(self) -> list[Generation]:
        """Generations without a row."""
        with self._lock:
            return [one.generation for made in self._tenants.values() for one in made.waiting]

    @property
    def reading(self) -> list[Generation]:
        """Generations whose prompt is being read."""
        with self._lock:
            return [one.generation for made in self._tenants.values() for one in made.reading]

    def append(self, generation: Generation) -> None:
        """Add a generation to its tenant's queue."""
        with self._lock:
            tenant = self._tenants.setdefault(generation.request.tenant, _Tenant())
            tenant.waiting.append(_Ticket(self._tickets, generation))
            self._tickets += 1

    def begin(self, rows: Mapping[str, int]) -> Generation | None:
        """Give a free row to a waiting generation, whose prompt is being read from now on.

        Args:
            rows: that each tenant holds; tenants without any may be missing.

        Returns:
            The generation; None if nothing waits or all have to wait for earlier prompts.
        """
        with self._lock:
            found = {
                name: ticket
                for name, tenant in self._tenants.items()
                if (ticket := tenant.next_to_begin()) is not None
            }
            if not found:
                return None
            served = {name: order for order, name in enumerate(self._served)}
            name = min(
                found,
                key=lambda one: (rows.get(one, 0), served.get(one, -1), found[one].number),
            )
            self._served.pop(name, None)
            self._served[name] = None
            if len(self._served) > _REMEMBERED:
                del self._served[next(iter(self._served))]
            tenant, ticket = self._tenants[name], found[name]
            tenant.waiting.remove(ticket)
            tenant.reading.append(ticket)
            self._turns.setdefault(name)
            return ticket.generation

    def next_to_read(self) -> Generation | None:
        """The generation whose prompt is to be read by one piece; None if none is being read."""
        with self._lock:
            name = next(iter(self._turns), None)
            if name is None:
                return None
            del self._turns[name]
            self._turns[name] = None
            return self._tenants[name].next_to_read().generation

    def remove(self, generation: Generation) -> None:
        """Take a generation out: its prompt has been read, or it has ended."""
        name = generation.request.tenant
        with self._lock:
            tenant = self._tenants[name]
            for tickets in (tenant.waiting, tenant.reading):
                for ticket in tickets:
                    if ticket.generation is generation:
                        tickets.remove(ticket)
                        break
            if not tenant.reading:
                self._turns.pop(name, None)
                if not tenant.waiting:
                    del self._tenants[name]
