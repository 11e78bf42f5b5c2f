"""Drafts over the target's own weight file: of its layers, or a head that has its embedding."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from specplug.export import graphs

DRAFT_GRAPH = "draft.onnx"
DRAFT_DATA = "draft.onnx.data"

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
    found = _found(
        draft, target, lambda name: _LAYER.sub(lambda m: f"{m[1]}.{layers[int(m[2])]}", name)
    )
    for name, value in draft.graph.initializers.items():
        if name not in found and value.const_value.nbytes > _SMALL:
            return False
    _refer(draft, found, target)
    ir.save(draft, target / DRAFT_GRAPH)
    return True


def share_table(draft: Any, target: Path, table: str) -> bool:
    """Save a draft's graph beside its target's, all but what they share in a file of its own.

    Args:
        draft: the graph.
        target: the folder of the target's saved graph.
        table: the embedding's name, before it was rounded, in both.

    Returns:
        Whether the embedding is the target's, byte for byte; if not, nothing is written.
    """
    found = _found(draft, target, lambda name: name)
    if not any(name.startswith(table) for name in found):
        return False
    own = [
        value
        for name, value in draft.graph.initializers.items()
        if name not in found and value.const_value.nbytes > _SMALL
    ]
    tensors = [value.const_value for value in own]
    written = ir.external_data.convert_tensors_to_external(tensors, target, DRAFT_DATA)
    for value, tensor in zip(own, written, strict=True):
        value.const_value = tensor
    _refer(draft, found, target)
    ir.save(draft, target / DRAFT_GRAPH)
    return True


def _found(draft: Any, target: Path, their_name: Callable[[str], str]) -> dict[str, Any]:
    """The target's larger tensors that are the draft's, by the draft's names."""
    theirs = {
        name: value.const_value
        for name, value in graphs.load(target).graph.initializers.items()
        if isinstance(value.const_value, ir.ExternalTensor) and value.const_value.nbytes > _SMALL
    }
    found = {}
    for name, value in draft.graph.initializers.items():
        tensor, ours = theirs.get(their_name(name)), value.const_value
        if tensor is not None and tensor.dtype == ours.dtype and tensor.tobytes() == ours.tobytes():
            found[name] = tensor
    return found


def _refer(draft: Any, found: Mapping[str, Any], target: Path) -> None:
    """Take what was found from the target's file, and what is small into the graph itself.

    Tensors that are left as they were read would be looked for in the target's file, too, where
    other bytes lie.
    """
    for name, value in draft.graph.initializers.items():
        own = value.const_value
        if name not in found and isinstance(own, ir.ExternalTensor) and own.nbytes <= _SMALL:
            (value.const_value,) = ir.external_data.convert_tensors_from_external([own])
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


_SMALL = 1 << 10  # bytes that may stand in the graph itself: constants, not weights
