"""How a run of tokens becomes engine calls: in pieces, and never narrower than is safe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from specplug.engine_calls import forward
from specplug.types import Engine, Int32Array, Scores, Step

PREFILL_WIDTH = 256
"""Tokens of a long run that one call takes; bounds the memory of activations.

Measured: between 64 and 512 the time is nearly the same, and this the quickest.
"""

Observe = Callable[[int, Sequence[int], Scores], None]
"""Told the number of tokens before a call, the call's own and their scores."""


def feed(
    engine: Engine,
    tokens: Sequence[int],
    *,
    past: int,
    scored: int,
    parents: Sequence[int] | None = None,
    row: int = 0,
    observe: Observe | None = None,
) -> Scores:
    """Run one sequence's next tokens through an engine.

    Args:
        engine: the engine; its cache must hold ``past`` entries of this sequence.
        tokens: the tokens that follow them, at least one.
        past: valid cache entries before this call.
        scored: how many of the last tokens need scores, 1 <= scored <= PREFILL_WIDTH.
        parents: if the last tokens are a tree, the index among them of the one before each; -1:
            the token before them all.
        row: of the cache.
        observe: told of every call, while its scores are valid.

    Returns:
        Scores whose first ``scored`` rows are those of the last ``scored`` tokens. Rows after
        them, if any, are padding: a call narrower than ``spec.min_width`` could round otherwise
        than the wide call that verifies the same token, so it is widened with a token whose
        cache entry the next call overwrites.
    """
    pending = list(tokens)
    while len(pending) - scored >= PREFILL_WIDTH:
        scores = forward(engine, _step(pending[:PREFILL_WIDTH], past, PREFILL_WIDTH - 1, row))
        if observe is not None:
            observe(past, pending[:PREFILL_WIDTH], scores)
        pending, past = pending[PREFILL_WIDTH:], past + PREFILL_WIDTH
    scores_from, last = len(pending) - scored, pending
    pending = pending + pending[-1:] * (engine.spec.min_width - len(pending))
    tree = None
    if parents is not None:
        chain = len(tokens) - len(parents)
        padding = range(len(tokens) - 1, len(pending) - 1)
        tree = np.array(
            [*range(-1, chain - 1), *(chain + parent for parent in parents), *padding],
            dtype=np.int32,
        )
    scores = forward(engine, _step(pending, past, scores_from, row, tree))
    if observe is not None:
        observe(past, last, scores)
    return scores


def _step(
    tokens: list[int], past: int, scores_from: int, row: int, parents: Int32Array | None = None
) -> Step:
    return Step(
        tokens=np.array([tokens], dtype=np.int64),
        past=np.array([past], dtype=np.int64),
        first_row=row,
        scores_from=scores_from,
        parents=parents,
    )
