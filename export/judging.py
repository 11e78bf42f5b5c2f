"""What a draft of some of the target's layers would guess, counted over texts the target wrote."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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

_AT_ONCE = 128  # places whose guesses one call makes; bounds the memory of logits
_ENTRIES = 1024  # of texts that are judged together: attention reads them all for every place
_PIECE = 128  # tokens of a call over a text; likewise

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


class _Pack:
    """Texts in one row of the cache, one after another; none sees the others."""

    def __init__(self) -> None:
        self.offsets: dict[int, int] = {}
        """By the text's number, the entry of its first token."""
        self.entries: list[Any] = []
        """Of each text but its last token, which has one to itself that nothing is written to."""
        self.tokens = np.empty(0, dtype=np.int64)
        self.positions = np.empty(0, dtype=np.int64)
        """Of all entries, in the texts that they are of."""

    def add(self, number: int, tokens: Int64Array, entries: Any) -> None:
        """One text more."""
        self.offsets[number] = len(self.tokens)
        self.entries.append(entries)
        self.tokens = np.concatenate([self.tokens, tokens])
        self.positions = np.concatenate([self.positions, np.arange(len(tokens))])


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
        self._packs = [*self._packed(texts)] if self._engine.spec.supports_tree else []
        self._loaded: _Pack | None = None

    def _packed(self, texts: Sequence[Text]) -> Iterator[_Pack]:
        """The texts, as many beside one another as one row of the cache should hold."""
        most = min(_ENTRIES, self._engine.spec.context_limit - LONGEST)
        pack, size = _Pack(), 0
        for number, text in enumerate(texts):
            feed(self._engine, text.tokens[:-1].tolist(), past=0, scored=1)
            entries = self._engine.save(0, 0, len(text.tokens) - 1)
            if pack.tokens.size and size + len(text.tokens) > most:
                yield pack
                pack, size = _Pack(), 0
            pack.add(number, text.tokens, entries)
            size += len(text.tokens)
        yield pack

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
        if self._packs:
            for pack in self._packs:
                self._from_places(pack, starts, tally)
        else:
            for number, those in starts.items():
                self._over_all(self._texts[number].tokens, those, tally)
        return Runs(tuple(tally.tested), tuple(tally.right))

    def _from_places(self, pack: _Pack, starts: Mapping[int, list[int]], tally: _Tally) -> None:
        engine = self._engine
        if pack is not self._loaded:
            for offset, entries in zip(pack.offsets.values(), pack.entries, strict=True):
                engine.load(0, offset, entries)
            self._loaded = pack
        found = [
            (offset + start, offset, offset + len(self._texts[number].tokens))
            for number, offset in pack.offsets.items()
            for start in starts.get(number, ())
        ]
        room = engine.spec.context_limit - len(pack.tokens)
        at_once = max(min(_AT_ONCE, room // LONGEST), 1)
        for first in range(0, len(found), at_once):
            self._walk(pack, np.array(found[first : first + at_once]), tally)

    def _walk(self, pack: _Pack, places: Int64Array, tally: _Tally) -> None:
        """From each place as many guesses as are right; their entries follow the texts'.

        Args:
            pack: what the cache holds.
            places: i64[n, 3], each the index of the token to begin after, and those of its text's
                first token and of the one past its last.
            tally: to count in.
        """
        keys = pack.positions
        chains = np.empty((len(places), 0), dtype=np.int64)  # entries of each place's guesses
        for depth in range(LONGEST):
            goes_on = places[:, 0] + depth + 1 < places[:, 2]
            places, chains = places[goes_on], chains[goes_on]
            if not len(places):
                return
            starts, firsts = places[:, 0], places[:, 1]
            at = starts + depth
            chains = np.column_stack([chains, len(keys) + np.arange(len(starts))])
            past, keys = len(keys), np.concatenate([keys, at - firsts])
            entries = np.arange(len(keys))
            seen = (entries >= firsts[:, None]) & (entries < starts[:, None])
            np.put_along_axis(seen, chains, values=True, axis=1)
            best = self._best(pack.tokens[at], past, _View(at - firsts, seen, keys))
            right = best == pack.tokens[at + 1]
            tally.count(depth, len(right), int(right.sum()))
            places, chains = places[right], chains[right]

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
