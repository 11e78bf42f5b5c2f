"""Embedding tables in 8-bit blocks: those of the LM head that is tied to them, or their own."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.blocks import BLOCK_SIZE, Rounding, nearest
from specplug.export.keeping import Keep, keep_none
from specplug.export.passes.editing import MICROSOFT, Linear, constant, replace
from specplug.export.passes.quantize_nbits import blocks_name

_BITS = 8


class GatherBlocks(ir.passes.InPlacePass):  # type: ignore[misc]
    """Look tokens up in blocks, row by row, so that a token's row depends on nothing else.

    GatherBlockQuantized reads the very blocks that MatMulNBits multiplies by, if the LM head is a
    copy of the table, and blocks of its own if not. In fp32 the table of a small model is more than
    all its layers.

    Args:
        rounding: how a table becomes blocks, without offsets, which a lookup would miss; one for
            which it gives none stays as it is.
        keep: tables for which it says yes stay as they are.
    """

    def __init__(self, *, rounding: Rounding = nearest, keep: Keep = keep_none) -> None:
        super().__init__()
        self._rounding = rounding
        self._keep = keep

    def call(self, model: Any) -> Any:
        """Replace each lookup of tokens; unmodified if there is none that can be."""
        graph = model.graph
        heads = {n.inputs[1].name: n for n in graph if n.op_type == "MatMulNBits"}
        modified = False
        for lookup in token_lookups(graph):
            node, table = lookup.node, lookup.factor
            names = [blocks_name(table.name, bits) for bits in (4, 8)]
            head = next((heads[name] for name in names if name in heads), None)
            if head is not None and head.attributes["K"].value == table.shape[1]:
                _gather_from_head(graph, node, head)
                modified = True
            elif len(table.uses()) == 1:  # else a head in fp32 needs it
                modified |= self._gather_from_table(graph, lookup)
        return ir.passes.PassResult(model, modified=modified)

    def _gather_from_table(self, graph: Any, lookup: Linear) -> bool:
        if lookup.shape[1] % BLOCK_SIZE or self._keep(lookup):
            return False
        blocks = self._rounding(lookup.weight().T, _BITS)
        if blocks is None:
            return False
        name = blocks_name(lookup.name, blocks.bits)
        packed = blocks.packed()
        inputs = [
            constant(graph, name, packed.reshape(len(packed), -1)),
            lookup.input,
            constant(graph, f"{name}_scales", blocks.scales),
        ]
        zero_points = blocks.packed_zero_points()
        if zero_points is not None:
            inputs.append(constant(graph, f"{name}_zero_points", zero_points))
        _replace(graph, lookup.node, inputs, blocks.bits)
        return True


def token_lookups(graph: Any) -> list[Linear]:
    """Where token ids become rows of a table: products with rows of the identity."""
    return [
        Linear(node, node.inputs[1], node.outputs[0], table.name, False, table, transposed=False)
        for node in graph
        if node.op_type == "Gather" and node.inputs[1].name == "input_ids"
        for table in node.inputs[:1]
        if table.is_initializer()
        and not ("axis" in node.attributes and node.attributes["axis"].value)
    ]


def _gather_from_head(graph: Any, node: Any, head: Any) -> None:
    # The lookup takes rows, the product rows of blocks: the same bytes, of which one is stored.
    shape = constant(graph, "table_shape", np.array([head.attributes["N"].value, -1]))
    rows = ir.node("Reshape", [head.inputs[1], shape])
    graph.insert_before(node, rows)
    inputs = [rows.outputs[0], node.inputs[1], *head.inputs[2:]]
    _replace(graph, node, inputs, head.attributes["bits"].value)


def _replace(graph: Any, node: Any, inputs: list[Any], bits: int) -> None:
    gathered = ir.node(
        "GatherBlockQuantized",
        inputs,
        {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK_SIZE, "bits": bits},
        domain=MICROSOFT,
    )
    graph.insert_before(node, gathered)
    replace(graph, node.outputs[0], gathered.outputs[0])
