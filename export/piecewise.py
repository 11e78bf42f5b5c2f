"""An fp32 graph that is run piece by piece, so that it needs the memory of one piece alone.

In fp32 the weights may be larger than memory, and ONNX Runtime packs them into a copy besides. The
exporter runs its fp32 graph a few times only, so it loads the pieces one after the other, unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.bundle import CacheLayout, Dialect
from specplug.engines.host import HostScores, check_step
from specplug.engines.ort_session import mapped_errors, open_session
from specplug.engines.trees import MASK, fill_mask, mask_window
from specplug.export import graphs
from specplug.opening import EngineOptions
from specplug.types import HIDDEN_STATES, EngineSpec, Step

PIECE_BYTES = 1 << 30
"""Of weights; a single larger matrix is a piece of its own."""

_KINDS = ("key", "value")


class PiecewiseEngine:
    """One row over a graph in fp32; see :class:`specplug.types.Engine`.

    Args:
        folder: where :func:`specplug.export.graphs.save` wrote it; the pieces are written there.
        dialect: the graph's.
        cache: the layout of its cache.
        vocab_size: V.
        max_length: cache entries a row can hold.
        piece_bytes: weights of a piece.
    """

    def __init__(
        self,
        folder: Path,
        *,
        dialect: Dialect = "ort",
        cache: CacheLayout,
        vocab_size: int,
        max_length: int,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.spec = EngineSpec(name="piecewise", vocab_size=vocab_size, max_length=max_length)
        self._folder = folder
        self._dialect = dialect
        self._model = graphs.load(folder)
        self._pieces = list(_cut(self._model.graph, piece_bytes))
        self._session: Any = None
        empty = np.zeros((1, cache.heads, 0, cache.head_size), dtype=cache.dtype)
        self._cache = {f"{layer}.{kind}": empty for layer in range(cache.layers) for kind in _KINDS}

    def forward(self, step: Step) -> HostScores:
        """Run one row's tokens through every piece."""
        check_step(self.spec, step)
        width, past = step.tokens.shape[1], int(step.past[0])
        values: dict[str, Any] = {
            "input_ids": step.tokens,
            "position_ids": np.arange(past, past + width, dtype=np.int64)[None],
            "scores_from": np.array([step.scores_from], dtype=np.int64),
        }
        room = 0
        if self._dialect == "standard":
            room = width  # its cache has the room for what a call adds
            values["write_indices"] = np.array([past], dtype=np.int64)
            for value in self._model.graph.inputs:
                if value.name.startswith(MASK):
                    mask = np.empty((1, 1, width, past + width), dtype=np.float32)
                    fill_mask(mask, step, mask_window(value.name))
                    values[value.name] = mask
        else:
            values["seqlens_k"] = np.array([past + width - 1], dtype=np.int32)
            values["query_seqlens"] = np.array([width], dtype=np.int32)
            values["total_sequence_length"] = np.array(past + width, dtype=np.int32)
            values["attention_bias"] = np.zeros((1, 1, width, past + width), dtype=np.float32)
        for name, entries in self._cache.items():
            values[f"past_key_values.{name}"] = np.pad(
                entries[:, :, :past], ((0, 0), (0, 0), (0, room), (0, 0))
            )
        with mapped_errors("running a graph piece by piece"):
            for number in range(len(self._pieces)):
                self._run(number, values)
        self._cache = {name: values[f"present.{name}"] for name in self._cache}
        hidden = {HIDDEN_STATES: values[HIDDEN_STATES]} if HIDDEN_STATES in values else None
        return HostScores(values["logits"], hidden)

    def close(self) -> None:
        """Release what is loaded."""
        self._session = None
        self._cache = {}

    def _run(self, number: int, values: dict[str, Any]) -> None:
        """Add a piece's outputs to ``values``."""
        inputs, outputs = self._pieces[number]
        session = self._session
        if session is None:
            path = self._folder / f"piece-{number}.onnx"
            if not path.exists():
                _write(self._model, inputs, outputs, values, path)
            session = open_session(path, EngineOptions(), pack_weights=False)
        found = session.run(outputs, {name: values[name] for name in inputs})
        values.update(zip(outputs, found, strict=True))
        if len(self._pieces) == 1:
            self._session = session


def _cut(graph: Any, piece_bytes: int) -> Iterator[tuple[list[str], list[str]]]:
    """Inputs and outputs of the pieces, in the order to run them in."""
    pieces: list[list[Any]] = [[]]
    weights: set[Any] = set()
    for node in graph:
        mine = {value for value in node.inputs if value is not None and value.is_initializer()}
        size = sum(value.const_value.nbytes for value in weights | mine)
        if weights and size > piece_bytes:
            pieces.append([])
            weights = set()
        pieces[-1].append(node)
        weights |= mine
    for nodes in pieces:
        here = set(nodes)
        made = [value for node in nodes for value in node.outputs]
        read = {value for node in nodes for value in node.inputs if value is not None}
        inputs = {v.name for v in read - set(made) if not v.is_initializer()}
        yield (
            sorted(inputs),
            [v.name for v in made if v.is_graph_output() or {n for n, _ in v.uses()} - here],
        )


def _write(
    model: Any, inputs: list[str], outputs: list[str], values: dict[str, Any], path: Path
) -> None:
    piece = ir.convenience.extract(model.graph, inputs, outputs)
    for value in piece.inputs:  # those between pieces may have no type
        array = values[value.name]
        value.dtype = ir.DataType.from_numpy(array.dtype)
        value.shape = ir.Shape([None] * array.ndim)
    piece.opset_imports.update(model.graph.opset_imports)
    functions = model.functions.values()
    ir.save(ir.Model(piece, ir_version=model.ir_version, functions=functions), path)
