"""Attention over at least two rows, so that one token rounds as it does among many."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.passes.editing import attention_nodes, constant, graph_input, replace
from specplug.export.passes.tree_attention import ATTENTION_BIAS, POSITION_IDS

_SEQLENS_K, _TOTAL_LENGTH, _QUERY_SEQLENS = 5, 6, 16  # inputs of GroupQueryAttention


class PadAttention(ir.passes.InPlacePass):  # type: ignore[misc]
    """Repeat the last row of the queries, keys and values, and drop it after the attention.

    With one query row GroupQueryAttention takes another kernel than with several, whose result
    differs in the last bit; where activations are rounded to int8, thirty layers amplify that
    into other text. Padded to two rows, widths 1, 2, 4, … agree bit for bit. The repeated row
    writes one spare cache entry, which the next call overwrites.

    The new input ``attention_rows`` i64[] is the fewest rows: 2, or 1 to give the rule up.
    Indices are made once per call: for wide calls two copies a layer are left.
    """

    def call(self, model: Any) -> Any:
        """Pad every attention; unmodified if there is none or it is padded."""
        graph = model.graph
        nodes = attention_nodes(graph)
        if not nodes or any(value.name == "attention_rows" for value in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        rows = _Rows(graph, nodes[0])
        for node in nodes:
            for index in (0, 1, 2):  # queries, keys and values, or all three packed into the first
                if node.inputs[index] is not None:
                    padded = ir.node("Gather", [node.inputs[index], rows.padded], {"axis": 1})
                    graph.insert_before(node, padded)
                    node.replace_input_with(index, padded.outputs[0])
            node.replace_input_with(_SEQLENS_K, rows.seqlens_k)
            if len(node.inputs) > ATTENTION_BIAS and node.inputs[ATTENTION_BIAS] is not None:
                for index in (POSITION_IDS, ATTENTION_BIAS):
                    node.replace_input_with(index, rows.repeated[node.inputs[index]])
            else:  # with a bias the length is the cache's, spare entry included
                node.replace_input_with(_TOTAL_LENGTH, rows.total_length)
            node.replace_input_with(_QUERY_SEQLENS, rows.query_seqlens)
            attended = node.outputs[0]
            attended.shape = None  # one row more than was inferred
            kept = ir.node("Slice", [attended, rows.first, rows.width, rows.axis])
            graph.insert_after(node, kept)
            replace(graph, attended, kept.outputs[0])
            kept.replace_input_with(0, attended)
        return ir.passes.PassResult(model, modified=True)


class _Rows:
    """The row indices and lengths of a call, computed at the head of the graph."""

    def __init__(self, graph: Any, attention: Any) -> None:
        self._nodes: list[Any] = []
        self.repeated: dict[Any, Any] = {None: None}
        tokens = next(value for value in graph.inputs if value.name == "input_ids")
        fewest = graph_input(graph, "attention_rows", ir.DataType.INT64, [])
        zero = constant(graph, "row_0", np.array(0, dtype=np.int64))
        one = constant(graph, "row_1", np.array(1, dtype=np.int64))
        self.first = constant(graph, "rows_from", np.array([0], dtype=np.int64))
        self.axis = constant(graph, "rows_axis", np.array([1], dtype=np.int64))
        self.width = self._add("Shape", tokens, start=1, end=2)
        width = self._add("Squeeze", self.width)
        widened = self._add("Max", width, fewest)
        last = self._add("Sub", width, one)
        self.padded = self._add("Min", self._add("Range", zero, widened, one), last)
        for index, axis in ((POSITION_IDS, 1), (ATTENTION_BIAS, 2)):
            given = attention.inputs[index] if index < len(attention.inputs) else None
            if given is not None:
                self.repeated[given] = self._add("Gather", given, self.padded, axis=axis)
        extra = self._add("Cast", self._add("Sub", widened, width), to=ir.DataType.INT32.value)
        self.seqlens_k = self._add("Add", attention.inputs[_SEQLENS_K], extra)
        self.total_length = self._add("Add", attention.inputs[_TOTAL_LENGTH], extra)
        self.query_seqlens = self._add("Add", attention.inputs[_QUERY_SEQLENS], extra)
        graph.insert_before(graph[0], self._nodes)

    def _add(self, op_type: str, *inputs: Any, **attributes: int) -> Any:
        node = ir.node(op_type, list(inputs), attributes)
        self._nodes.append(node)
        return node.outputs[0]
