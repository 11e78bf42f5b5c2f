"""An engine without a model: scores come from a function of the prefix. For tests, yours too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from specplug.arguments import checked
from specplug.engines.host import HostScores, check_step
from specplug.types import EngineError, EngineSpec, Step


class FakeEngine:
    """Keeps to the engine contract, and insists that its caller does.

    Args:
        row: from a prefix (all tokens up to and including the position) to its logits, f32[V].
        vocab_size: V.
        max_length: cache entries a row can hold.
        max_batch: rows a call can have.
        min_width: calls narrower than this are refused.
        trees: whether calls may be trees of tokens.

    ``steps`` records every call. A ``past`` that names entries never written is an error, so a
    loop that loses track of the cache is found out.
    """

    @checked()
    def __init__(
        self,
        row: Callable[[tuple[int, ...]], ArrayLike],
        *,
        vocab_size: int,
        max_length: int = 1 << 16,
        max_batch: int = 1,
        min_width: int = 1,
        trees: bool = False,
    ) -> None:
        self._row = row
        self._cache: list[list[int]] = [[] for _ in range(max_batch)]
        self._closed = False
        self.steps: list[Step] = []
        self.spec = EngineSpec(
            name="fake",
            vocab_size=vocab_size,
            max_length=max_length,
            max_batch=max_batch,
            min_width=min_width,
            supports_tree=trees,
            exact_trees=trees,
        )

    def forward(self, step: Step) -> HostScores:
        """Scores of each wanted position; padding of ragged rows is written, then overwritten."""
        if self._closed:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        self.steps.append(step)
        parents = range(-1, step.tokens.shape[1] - 1) if step.parents is None else step.parents
        rows = [
            self._scores(cache, int(past), tokens.tolist(), list(parents), step.scores_from)
            for cache, past, tokens in zip(
                self._cache[step.first_row :], step.past, step.tokens, strict=False
            )
        ]
        return HostScores(np.array(rows, dtype=np.float32))

    def _scores(
        self,
        cache: list[int],
        past: int,
        tokens: Sequence[int],
        parents: Sequence[int],
        scores_from: int,
    ) -> list[ArrayLike]:
        if past > len(cache):
            raise EngineError(f"past {past}, but only {len(cache)} entries were ever written")
        cache[past : past + len(tokens)] = tokens
        prefixes = {-1: tuple(cache[:past])}
        for node, (token, parent) in enumerate(zip(tokens, parents, strict=True)):
            prefixes[node] = (*prefixes[parent], token)
        return [self._row(prefixes[node]) for node in range(scores_from, len(tokens))]

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        cache = self._cache[row]
        cache[past:] = [cache[past + node] for node in nodes]

    def clear(self, row: int, start: int) -> None:
        """Forget a row's entries; see :class:`specplug.types.ClearableEngine`."""
        del self._cache[row][start:]

    def save(self, row: int, start: int, stop: int) -> NDArray[np.int64]:
        """A copy of a row's entries; see :class:`specplug.types.BatchEngine`."""
        return np.array(self._cache[row][start:stop], dtype=np.int64)

    def load(self, row: int, start: int, entries: NDArray[np.int64]) -> None:
        """Write entries into a row; see :class:`specplug.types.BatchEngine`."""
        if start > len(self._cache[row]):
            raise EngineError(f"start {start}, but row {row} has {len(self._cache[row])} entries")
        self._cache[row][start : start + len(entries)] = entries.tolist()

    def close(self) -> None:
        """Further calls are errors."""
        self._closed = True
