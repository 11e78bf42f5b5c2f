"""Which replica a request goes to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b


def preferred(queues: Mapping[str, int], prefix: bytes | None, threshold: int) -> list[str]:
    """Replicas in the order in which they should be tried.

    A prefix ranks the replicas by a hash of both (rendezvous hashing), so that all ingresses agree
    without talking to each other, and a replica that comes or goes moves only its own prefixes.
    The first in that order is taken unless ``threshold`` or more requests longer is its queue than
    the shortest: then the shortest queue is, of several equal ones the earliest in the order.

    Args:
        queues: requests that each replica has, running and waiting.
        prefix: what the request shares with others; None: the shortest queue is taken, of several
            equal ones any.
        threshold: how many more requests a queue may have before its prefix gives way, at least 1.
    """
    key = os.urandom(16) if prefix is None else prefix
    order = sorted(queues, key=lambda name: blake2b(name.encode(), key=key).digest())
    by_length = sorted(order, key=lambda name: queues[name])
    if prefix is None or not order or queues[order[0]] - queues[by_length[0]] >= threshold:
        return by_length
    return [order[0], *(name for name in by_length if name != order[0])]
