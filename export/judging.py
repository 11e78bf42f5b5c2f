"""What a draft of some of the target's layers would guess, counted over texts the target wrote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.bundle import Component
from specplug.engines.ort import Array, OrtEngine
from specplug.engines.ort_standard import OrtStandardEngine
from specplug.engines.trees import HIDDEN, MASK, mask_window
from specplug.export.passes import GateLayers
from specplug.export.passes.gate_layers import KEPT_LAYERS
from specplug.feeding import feed
from specplug.opening import EngineOptions
from specplug.skip_search import LONGEST, Layers, Runs
from specplug.types import Int64Array, Step

_AT_ONCE = 64  # places whose guesses one call makes
_PIECE = 128  # tokens of a call over a text; bounds the memory of logits

Place = tuple[int, int]
"""A text's number, and the index of the token that a round would begin after."""


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and what the target said, i64[n]."""

    tokens: Int64Array
    answer: int
    """Index of the first token that it said."""

    @property
    def starts(self) -> range:
        """Indices of the tokens that rounds begin after: those that are followed by a known one."""
        return range(self.answer, len(self.tokens) - 1)


@dataclass(frozen=True, slots=True)
class _View:
    """Who sees what in a call whose tokens are at many places of a text at once."""

    positions: Int64Array  # [T]
    seen: np.ndarray[Any, np.dtype[np.bool_]]  # [T, entries]
    key_positions: Int64Array  # [entries]

    def fill(self, mask: Array, window: int | None) -> None:
        """Write it as what is added to products, f32[1, 1, T, capacity]."""
        seen = self.seen
        if window is not None:
            seen = seen & (self.key_positions > self.positions[:, None] - window)
        mask[...] = HIDDEN
        mask[0, 0, :, : seen.shape[1]][seen] = 0

    def padded(self, rows: int) -> _View:
        """With its last row repeated."""
        pick = np.minimum(np.arange(rows), len(self.positions) - 1)
        return _View(self.positions[pick], self.seen[pick], self.key_positions)


class _Gated(OrtEngine):
    """An engine over a graph with gates, which runs the layers that it is told to."""

    def __init__(self, graph: Path, **options: Any) -> None:
        super().__init__(graph, **options)
        self.kept = np.ones(self.cache.layout.layers, dtype=np.bool_)
        self.view: _View | None = None

    def _new_inputs(self, batch: int, width: int, tree: bool) -> dict[str, Array]:
        gates = {KEPT_LAYERS: np.ones(len(self.kept), dtype=np.bool_)}
        return super()._new_inputs(batch, width, tree) | gates

    def _fill(self, inputs: dict[str, Array], step: Step) -> None:
        super()._fill(inputs, step)
        inputs[KEPT_LAYERS][...] = self.kept
        if self.view is not None:
            inputs["position_ids"][...] = self.view.positions
            for name, mask in inputs.items():
                if name == "attention_bias":
                    self.view.fill(mask, None)
                elif name.startswith(MASK):
                    self.view.fill(mask, mask_window(name))


class _GatedStandard(_Gated, OrtStandardEngine):
    """The same of the standard dialect."""


class LayerJudge:
    """Counts, for any set of layers, how far its guesses would have been the target's words.

    The target's own cache entries are computed once. From many places of a text at once a draft
    then guesses the next token as it would in decoding: it sees the target's entries of the tokens
    before, and its own of those that it has drafted. Guesses go on where they were right.

    Graphs that take no trees cannot be told who sees what. There a draft reads the whole text over
    entries of its own, which makes its guesses look a little worse than they are.

    Args:
        graph: the target's, with gates.
        component: the target.
        options: how to run it.
        texts: at least one, each with a place.
    """

    def __init__(
        self, graph: Path, component: Component, options: EngineOptions, texts: Sequence[Text]
    ) -> None:
        kind = _GatedStandard if component.dialect == "standard" else _Gated
        self._engine = kind(
            graph,
            cache=component.cache,
            vocab_size=component.vocab_size,
            max_length=component.max_length,
            min_width=component.min_width,
            options=options,
        )
        self._texts = texts
        self._entries: list[Any] = []
        if self._engine.spec.supports_tree:
            for text in texts:
                feed(self._engine, text.tokens[:-1].tolist(), past=0, scored=1)
                self._entries.append(self._engine.save(0, 0, len(text.tokens) - 1))

    def places(self, most: int, seed: int) -> list[Place]:
        """Some places of the texts, in order, drawn by the seed."""
        found = [
            (number, start) for number, text in enumerate(self._texts) for start in text.starts
        ]
        drawn = np.random.default_rng(seed).permutation(len(found))[:most]
        return [found[index] for index in sorted(drawn.tolist())]

    def __call__(self, layers: Layers, places: Iterable[Place]) -> Runs:
        """Judge a set of layers at some places.

        Raises:
            EngineError: a call failed.
        """
        self._engine.kept[...] = False
        self._engine.kept[[*layers]] = True
        tally = _Tally()
        starts: dict[int, list[int]] = {}
        for number, start in places:
            starts.setdefault(number, []).append(start)
        for number, those in starts.items():
            if self._entries:
                self._from_places(number, those, tally)
            else:
                self._over_all(self._texts[number].tokens, those, tally)
        return Runs(tuple(tally.tested), tuple(tally.right))

    def _from_places(self, number: int, starts: Sequence[int], tally: _Tally) -> None:
        tokens, engine = self._texts[number].tokens, self._engine
        engine.load(0, 0, self._entries[number])
        room = engine.spec.context_limit - len(tokens)
        at_once = max(min(_AT_ONCE, room // LONGEST), 1)
        for first in range(0, len(starts), at_once):
            self._walk(tokens, np.array(starts[first : first + at_once]), tally)

    def _walk(self, tokens: Int64Array, starts: Int64Array, tally: _Tally) -> None:
        """From each start as many guesses as are right; their entries follow the text's."""
        keys = np.arange(len(tokens) - 1)  # positions of the entries that there are
        chains = np.empty((len(starts), 0), dtype=np.int64)  # entries of each start's guesses
        limit = self._engine.spec.context_limit
        for depth in range(LONGEST):
            goes_on = starts + depth + 1 < len(tokens)
            starts, chains = starts[goes_on], chains[goes_on]
            if not len(starts) or len(keys) + len(starts) > limit:
                return
            at = starts + depth
            chains = np.column_stack([chains, len(keys) + np.arange(len(starts))])
            past, keys = len(keys), np.concatenate([keys, at])
            seen = np.arange(len(keys)) < starts[:, None]
            np.put_along_axis(seen, chains, values=True, axis=1)
            best = self._best(tokens[at], past, _View(at, seen, keys))
            right = best == tokens[at + 1]
            tally.count(depth, len(right), int(right.sum()))
            starts, chains = starts[right], chains[right]

    def _best(self, tokens: Int64Array, past: int, view: _View) -> Int64Array:
        """What the draft guesses after each token, i64[T]."""
        rows = max(len(tokens), self._engine.spec.min_width)
        view = view.padded(rows)
        run = np.resize(tokens, rows)
        self._engine.view = view
        try:
            step = Step(
                tokens=run[None],
                past=np.array([past], dtype=np.int64),
                parents=np.full(rows, -1, dtype=np.int32),
            )
            return self._engine.forward(step).argmax()[0, : len(tokens)]
        finally:
            self._engine.view = None

    def _over_all(self, tokens: Int64Array, starts: Sequence[int], tally: _Tally) -> None:
        """From each start as many guesses as are right, the draft having read the text itself."""
        best = np.empty(len(tokens) - 1, dtype=np.int64)
        for start in range(0, len(best), _PIECE):
            piece = tokens[:-1][start : start + _PIECE].tolist()
            scores = feed(self._engine, piece, past=start, scored=len(piece))
            best[start : start + len(piece)] = scores.argmax()[0, : len(piece)]
        right = best == tokens[1:]
        for start in starts:
            for depth, correct in enumerate(right[start : start + LONGEST].tolist()):
                tally.count(depth, 1, int(correct))
                if not correct:
                    break

    def close(self) -> None:
        """Release the graph."""
        self._engine.close()


class _Tally:
    def __init__(self) -> None:
        self.tested = [0] * LONGEST
        self.right = [0] * LONGEST

    def count(self, depth: int, tested: int, right: int) -> None:
        self.tested[depth] += tested
        self.right[depth] += right


def write_gated(target: Path, graph: Path) -> None:
    """Write a target's graph with gates beside it, over its weights.

    Raises:
        ExportError: it is no chain of layers.
    """
    model = ir.load(target)
    GateLayers()(model)
    ir.save(model, graph)
