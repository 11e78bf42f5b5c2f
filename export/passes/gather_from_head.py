"""One table for the embedding and the LM head that it is tied to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from specplug.export.blocks import BLOCK_SIZE
from specplug.export.passes.editing import MICROSOFT, constant, replace
from specplug.export.passes.quantize_nbits import blocks_name


class GatherFromHead(ir.passes.InPlacePass):  # type: ignore[misc]
    """Look tokens up in the blocks of the LM head, where the head is a quantized copy of the table.

    GatherBlockQuantized reads the blocks that MatMulNBits multiplies by, row by row, so that a
    token's row depends on nothing else. Without it the table is stored in fp32 beside the head's
    blocks: for a small model that is more than all its layers.
    """

    def call(self, model: Any) -> Any:
        """Replace each lookup in a table of which there are blocks; unmodified if there is none.

        Blocks with offsets are left alone: a lookup would miss those.
        """
        graph = model.graph
        heads = {n.inputs[1].name: n for n in graph if n.op_type == "MatMulNBits"}
        modified = False
        for node in list(graph):
            table = node.inputs[0] if node.op_type == "Gather" else None
            if table is None or not table.is_initializer() or _axis(node) != 0:
                continue
            names = [blocks_name(table.name, bits) for bits in (4, 8)]
            head = next((heads[name] for name in names if name in heads), None)
            if head is not None and head.attributes["K"].value == table.shape[1]:
                _gather(graph, node, head)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _axis(node: Any) -> int:
    return node.attributes["axis"].value if "axis" in node.attributes else 0


def _gather(graph: Any, node: Any, head: Any) -> None:
    # The lookup takes rows, the product rows of blocks: the same bytes, of which one is stored.
    shape = constant(graph, "table_shape", np.array([head.attributes["N"].value, -1]))
    rows = ir.node("Reshape", [head.inputs[1], shape])
    gathered = ir.node(
        "GatherBlockQuantized",
        [rows.outputs[0], node.inputs[1], *head.inputs[2:]],
        {
            "gather_axis": 0,
            "quantize_axis": 1,
            "block_size": BLOCK_SIZE,
            "bits": head.attributes["bits"].value,
        },
        domain=MICROSOFT,
    )
    graph.insert_before(node, [rows, gathered])
    replace(graph, node.outputs[0], gathered.outputs[0])
