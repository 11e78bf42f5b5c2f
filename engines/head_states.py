"""What a draft head reads beside its tokens, for every engine that runs heads."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from specplug.types import EngineError, Float32Array, Step

STATES = ("features", "fed_back")
"""Of which kinds: the target's hidden states, and its own, in this order. Heads that guess a block
of tokens have none of their own."""


def given_states(step: Step, sizes: Mapping[str, int]) -> dict[str, Float32Array]:
    """The states of a call by kind, f32[B, n, size]; those that are left out have no rows.

    Args:
        step: the call.
        sizes: values a token of each of :data:`STATES` that the head reads.

    Raises:
        EngineError: they are of other shapes, or not one for every token before the block.
    """
    batch, width = step.tokens.shape
    empty = np.empty(0, dtype=np.float32)
    found = {
        name: step.states.get(name, empty.reshape(batch, 0, size)) for name, size in sizes.items()
    }
    given = [rows.shape for rows in found.values()]
    wanted = [(batch, rows, size) for (_, rows, _), size in zip(given, sizes.values(), strict=True)]
    if given != wanted or sum(rows for _, rows, _ in given) != width - step.block:
        raise EngineError(
            f"states of shapes {given} for {batch} rows of {width} tokens: a head needs one "
            f"of {' or '.join(sizes)} for every token"
            + (f" but the block's {step.block}" if step.block else "")
        )
    return found
