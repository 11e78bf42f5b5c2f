"""A draft that is some of its target's layers, over the target's own weight file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx_ir as ir

from specplug.export import graphs

DRAFT_GRAPH = "draft.onnx"

_LAYER = re.compile(r"(?<=[._])(layers|h)\.(\d+)(?=\.)")


def share_weights(draft: Any, target: Path, layers: tuple[int, ...]) -> bool:
    """Save a draft's graph beside its target's, weights read from the target's file.

    Args:
        draft: the graph, its layers numbered from 0.
        target: the folder of the target's saved graph.
        layers: the target's numbers of them.

    Returns:
        Whether all of its larger weights are there, byte for byte; if not, nothing is written.
    """
    theirs = {
        name: value.const_value
        for name, value in graphs.load(target).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor)
    }
    found = {}
    for name, value in draft.graph.initializers.items():
        tensor = theirs.get(_LAYER.sub(lambda m: f"{m[1]}.{layers[int(m[2])]}", name))
        ours = value.const_value
        if tensor is not None and tensor.dtype == ours.dtype and tensor.tobytes() == ours.tobytes():
            found[name] = tensor
        elif value.const_value.nbytes > _SMALL:
            return False
    for name, tensor in found.items():
        draft.graph.initializers[name].const_value = ir.ExternalTensor(
            tensor.location,
            tensor.offset,
            tensor.length,
            tensor.dtype,
            shape=draft.graph.initializers[name].const_value.shape,  # tables are shaped otherwise
            name=name,
            base_dir=str(target),
        )
    ir.save(draft, target / DRAFT_GRAPH)
    return True


_SMALL = 1 << 10  # bytes that may stand in the graph itself: constants, not weights
