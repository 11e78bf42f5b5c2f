"""ONNX Runtime: a graph bound once, past and present in one buffer; the ``ort`` dialect."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.engines.head_states import STATES, given_states
from specplug.engines.host import HostScores, check_step
from specplug.engines.key_values import KeyValues
from specplug.engines.ort_session import (
    check_vocabulary,
    hidden_size,
    mapped_errors,
    off_cpu,
    open_session,
)
from specplug.engines.trees import fill_mask, positions
from specplug.types import HIDDEN_STATES, EngineError, EngineSpec, Float32Array, Step

if TYPE_CHECKING:
    from specplug.bundle import CacheLayout
    from specplug.opening import EngineOptions

_BIAS = "attention_bias"
_KEPT_BINDINGS = 128  # by shape of call; prompts' odd widths come and go
_SCORED = 32  # rows of logits that there is memory for from the start: the widest rounds of drafts

Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class _Binding:
    """One shape of call: the session's binding and the arrays it reads and writes."""

    io: Any
    inputs: dict[str, Array]
    """By name; those that the graph does not have are filled, and not read."""
    read: dict[str, Array]
    """Those that it has, and the cache."""
    logits: Float32Array  # [B, T', V]
    hidden: dict[str, Float32Array]  # [B, T, D], if the graph gives any


class OrtEngine:
    """A graph and its cache; subclasses know what a dialect's inputs mean.

    Args:
        graph: the ``.onnx`` file.
        cache: the layout of its cache.
        vocab_size: V.
        max_length: cache entries a row can hold.
        min_width: as measured at export.
        exact_trees: as measured at export.
        input_vocab_size: as in :class:`specplug.types.EngineSpec`.
        options: threads, providers, narrow calls.
        shared: another engine's cache, in place of one of its own, and which of its layers are
            this graph's.

    Raises:
        EngineError: the file cannot be loaded, or a provider is not in this build.
    """

    def __init__(
        self,
        graph: Path,
        *,
        cache: CacheLayout,
        vocab_size: int,
        max_length: int,
        min_width: int,
        exact_trees: bool = False,
        input_vocab_size: int | None = None,
        options: EngineOptions,
        shared: tuple[KeyValues, Sequence[int]] | None = None,
    ) -> None:
        self._session = open_session(graph, options)
        self._off_cpu = off_cpu(options)
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        self._inputs = {*inputs}
        self._states = {name: int(inputs[name][-1]) for name in STATES if name in inputs}
        self._hidden_size = hidden_size(self._session)
        check_vocabulary(self._session, vocab_size)
        self.spec = EngineSpec(
            name="onnxruntime",
            vocab_size=vocab_size,
            max_length=min(max_length, shared[0].longest) if shared else max_length,
            max_batch=options.max_batch,
            min_width=1 if options.allow_narrow else min_width,
            supports_tree=self._takes_trees(),
            exact_trees=exact_trees and not self._off_cpu,
            supports_block=self._takes_blocks(),
            shares_cache=shared is not None,
            hidden=(HIDDEN_STATES,) if self._hidden_size else (),
            input_vocab_size=input_vocab_size,
            device=options.device or "cpu",
        )
        self._narrow = options.allow_narrow
        self.cache, self._layers = shared or (
            KeyValues(cache, options.max_batch, max_length),
            range(cache.layers),
        )
        self._bound_to: Array | None = None  # what the bindings read and write
        self._bindings: dict[tuple[int, int, int, int, bool, int], _Binding] = {}
        self._no_bias = np.zeros(0, dtype=np.float32)
        self._logits = self._hidden = np.empty(0, dtype=np.float32)

    def forward(self, step: Step) -> HostScores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._session is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        try:
            return self._run(step)
        except EngineError:
            raise
        except Exception as error:  # as in mapped_errors, without a context manager's cost per call
            raise EngineError(f"ONNX Runtime failed running the graph: {error}") from error

    def _run(self, step: Step) -> HostScores:
        batch, width = step.tokens.shape
        self._make_room(max(step.past.tolist()) + width)
        tree = step.parents is not None
        states = given_states(step, self._states) if self._states else {}
        first = states[STATES[0]].shape[1] if states else 0
        binding = self._binding(step.first_row, batch, width, width - step.scores_from, tree, first)
        binding.inputs["input_ids"][...] = step.tokens
        for name, rows in states.items():
            binding.inputs[name][...] = rows
        binding.inputs["scores_from"][0] = step.scores_from
        self._fill(binding.inputs, step)
        if self._off_cpu:  # inputs are copied there when they are bound, not when they are read
            _bind(binding.io.bind_input, binding.read)
        self._session.run_with_iobinding(binding.io)
        return HostScores(binding.logits, binding.hidden)

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        with mapped_errors("moving cache entries"):
            self.cache.keep(row, past, nodes)

    def save(self, row: int, start: int, stop: int) -> Array:
        """A copy of a row's entries; see :class:`specplug.types.BatchEngine`."""
        with mapped_errors("copying cache entries"):
            return self.cache.save(row, start, stop)

    def load(self, row: int, start: int, entries: Array) -> None:
        """Write entries into a row; see :class:`specplug.types.BatchEngine`."""
        with mapped_errors("writing cache entries"):
            self.cache.load(row, start, entries)

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries new; see :class:`specplug.types.ClearableEngine`."""
        self.cache.clear(row, start)

    def close(self) -> None:
        """Release session and cache."""
        self._bindings = {}
        self._session = self._bound_to = None
        self._logits = self._hidden = np.empty(0, dtype=np.float32)
        self.cache = KeyValues(self.cache.layout, 0, 0)  # the old one may be shared

    # --- the dialect --------------------------------------------------------------------------

    def _takes_trees(self) -> bool:
        return _BIAS in self._inputs

    def _takes_blocks(self) -> bool:
        return False  # its attention is causal within a call

    def _new_inputs(self, batch: int, width: int, tree: bool) -> dict[str, Array]:
        """Arrays of the dialect's own inputs for a shape of call."""
        made: dict[str, Array] = {
            "position_ids": np.zeros((batch, width), dtype=np.int64),
            "seqlens_k": np.zeros(batch, dtype=np.int32),  # last valid entry, this call's included
            "query_seqlens": np.zeros(batch, dtype=np.int32),  # this call's tokens
            "total_sequence_length": np.zeros((), dtype=np.int32),
            "attention_rows": np.array(1 if self._narrow else 2, dtype=np.int64),
        }
        if _BIAS in self._inputs:
            capacity = self.cache.entries.shape[4]
            made["total_sequence_length"][...] = capacity
            if tree:
                made[_BIAS] = np.zeros((batch, 1, width, capacity), dtype=np.float32)
            else:  # zeros, the same ones for all shapes
                if self._no_bias.size < width * capacity:
                    self._no_bias = np.zeros(width * capacity, dtype=np.float32)
                zeros = self._no_bias[: width * capacity]
                made[_BIAS] = zeros.reshape(1, 1, width, capacity)
        return made

    def _fill(self, inputs: dict[str, Array], step: Step) -> None:
        """Write a step into them."""
        width = step.tokens.shape[1]
        pasts = step.past.tolist()
        lengths = [width] * len(pasts) if step.lengths is None else step.lengths.tolist()
        for row, (past, length) in enumerate(zip(pasts, lengths, strict=True)):
            inputs["seqlens_k"][row] = past + length - 1
            inputs["query_seqlens"][row] = length
            inputs["position_ids"][row] = range(past, past + width)
        if step.parents is not None:
            inputs["position_ids"][...] = positions(step)
            fill_mask(inputs[_BIAS], step)
        if _BIAS not in self._inputs:
            # No less than the call is wide, though every row of it may be shorter.
            inputs["total_sequence_length"][...] = max(width, *map(int.__add__, pasts, lengths))

    # --- memory -------------------------------------------------------------------------------

    def _make_room(self, length: int) -> None:
        self.cache.make_room(length)
        if self._bound_to is not self.cache.entries:
            self._bound_to = self.cache.entries
            self._bindings = {}

    def _binding(
        self, first: int, batch: int, width: int, scored: int, tree: bool, features: int
    ) -> _Binding:
        key = first, batch, width, scored, tree, features
        found = self._bindings.get(key)
        if found is None:
            found = self._bind(*key)
            if len(self._bindings) >= _KEPT_BINDINGS:
                self._bindings.pop(next(iter(self._bindings)))
            self._bindings[key] = found
        return found

    def _bind(
        self, first: int, batch: int, width: int, scored: int, tree: bool, features: int
    ) -> _Binding:
        inputs = {
            "input_ids": np.zeros((batch, width), dtype=np.int64),
            "scores_from": np.zeros(1, dtype=np.int64),
            **self._new_inputs(batch, width, tree),
        }
        for (name, size), rows in zip(
            self._states.items(), (features, width - features), strict=False
        ):
            inputs[name] = np.zeros((batch, rows, size), dtype=np.float32)
        logits = self._room_for_logits(batch, scored)
        hidden = {}
        read = {name: array for name, array in inputs.items() if name in self._inputs}
        written: dict[str, Array] = {"logits": logits}
        for layer, place in enumerate(self._layers):
            pair = self.cache.entries[place, :, first : first + batch]
            for kind, entries in zip(("key", "value"), pair, strict=True):
                read[f"past_key_values.{layer}.{kind}"] = entries
                written[f"present.{layer}.{kind}"] = entries
        if self._hidden_size:
            hidden[HIDDEN_STATES] = written[HIDDEN_STATES] = self._room_for_hidden(batch, width)
        io = self._session.io_binding()
        with mapped_errors("binding the graph's inputs"):
            if not self._off_cpu:
                _bind(io.bind_input, read)
            _bind(io.bind_output, written)
        return _Binding(io, inputs, read, logits, hidden)

    def _room_for_logits(self, batch: int, scored: int) -> Float32Array:
        """Of one memory for all shapes of call: scores are valid until the next call only."""
        vocab_size = self.spec.vocab_size
        size = batch * scored * vocab_size
        if self._logits.size < size:  # of memory that is not written to, nothing is taken
            self._logits = np.empty(max(size, _SCORED * vocab_size), dtype=np.float32)
        return self._logits[:size].reshape(batch, scored, vocab_size)

    def _room_for_hidden(self, batch: int, width: int) -> Float32Array:
        """Likewise."""
        size = batch * width * self._hidden_size
        if self._hidden.size < size:
            self._hidden = np.empty(size, dtype=np.float32)
        return self._hidden[:size].reshape(batch, width, self._hidden_size)


def _bind(binder: Callable[..., None], arrays: dict[str, Array]) -> None:
    for name, array in arrays.items():
        binder(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
