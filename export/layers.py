"""Where a decoder's layers begin and end in its graph, whatever precision it was rounded to.

Layers are found by the shape of the graph alone: every path from the embeddings to the logits goes
through what a layer reads, the sum of the embeddings and of all layers before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from specplug.types import ExportError

_SUM = 3  # output of the norms that add first
_BIAS = {"SkipSimplifiedLayerNormalization": 3, "SkipLayerNormalization": 4}
"""The norms that add first, and their inputs that are added, too, if there are any."""
_NORMS = {
    "SkipSimplifiedLayerNormalization": ("RMSNormalization", "SimplifiedLayerNormalization"),
    "SkipLayerNormalization": ("LayerNormalization",),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """The node that makes what a layer reads, or what the last norm does."""

    node: Any

    @property
    def normalizes(self) -> bool:
        """Whether it adds the last part of the layer before and normalizes the sum, in one."""
        return self.node.op_type in _BIAS

    @property
    def stream(self) -> Any:
        """The sum, before any norm."""
        return self.node.outputs[_SUM if self.normalizes else 0]

    @property
    def addends(self) -> list[Any]:
        """Of a node that normalizes: what it adds up."""
        values = (_input(self.node, index) for index in self._added)
        return [value for value in values if value is not None]

    @property
    def _added(self) -> tuple[int, int, int]:
        return 0, 1, _BIAS[self.node.op_type]

    def normalized(self, graph: Any, first: Entry, stream: Any) -> Any:
        """Its norm of another sum, by a new node before it."""
        kinds = _NORMS[self.node.op_type]
        like = next((use.node for use in first.stream.uses() if use.node.op_type in kinds), None)
        weights = [*self.node.inputs[2 : _BIAS[self.node.op_type]]]
        made = ir.node(
            like.op_type if like else kinds[-1],  # as the first layer has it, if that has one
            [stream, *weights],
            {
                **(like.attributes if like else {"axis": -1}),
                "epsilon": self.node.attributes["epsilon"].value,
            },
            domain=like.domain if like else "",
        )
        graph.insert_before(self.node, made)
        return made.outputs[0]

    def take_addends(self, other: Entry) -> None:
        """Add up what another does, in place of its own."""
        self.node.resize_inputs(max(len(self.node.inputs), len(other.node.inputs)))
        for index in self._added:
            if index < len(self.node.inputs):
                self.node.replace_input_with(index, _input(other.node, index))


def _input(node: Any, index: int) -> Any:
    return node.inputs[index] if index < len(node.inputs) else None


def layer_entries(graph: Any) -> list[Entry]:
    """What each layer reads, and last what comes out of them all: one more than layers.

    Raises:
        ExportError: the graph is no chain of layers of one form.
    """
    path = _path(graph)
    caches = _cache_readers(graph)
    order = {node: index for index, node in enumerate(path)}
    if not caches or any(node not in order for node in caches):
        raise _unknown_form("no layer reads the cache")
    cuts, furthest = [], 0
    for index, node in enumerate(path):
        if furthest <= index:
            cuts.append(index)
        users = (order.get(use.node, 0) for value in node.outputs for use in value.uses())
        furthest = max([furthest, *users])
    attends = [order[node] for node in caches]
    entries = [max((cut for cut in cuts if cut < at), default=-1) for at in attends]
    later = [[cut for cut in cuts if cut > at] for at in attends]
    sizes = {
        len([cut for cut in after if cut <= entry])
        for after, entry in zip(later, entries[1:], strict=False)
    }
    if attends != sorted(attends) or entries[0] < 0 or len(sizes) != 1:
        raise _unknown_form(f"{len(attends)} layers that are not one after another, of one form")
    size = sizes.pop()
    if not 0 < size <= len(later[-1]):
        raise _unknown_form("nothing is added up after the last layer")
    return [Entry(path[index]) for index in [*entries, later[-1][size - 1]]]


def cache_layer(name: str) -> int | None:
    """The layer whose keys or values an input or output of this name holds; None: no cache."""
    kind, _, rest = name.partition(".")
    return int(rest.partition(".")[0]) if kind in ("past_key_values", "present") else None


def _cache_readers(graph: Any) -> list[Any]:
    """The first node of every layer that reads its cached keys."""
    keys = [value for value in graph.inputs if value.name.endswith(".key")]
    keys.sort(key=lambda value: cache_layer(value.name) or 0)
    return [next(iter(value.uses())).node for value in keys if value.uses()]


def _path(graph: Any) -> list[Any]:
    """The nodes between the embeddings and the logits; sizes of arrays are not followed."""
    tokens = next(value for value in graph.inputs if value.name == "input_ids")
    logits = next(value for value in graph.outputs if value.name == "logits")
    lookups = [use.node for use in tokens.uses() if use.node.op_type.startswith("Gather")]
    after = _closure(
        lookups, lambda node: (use.node for value in node.outputs for use in value.uses())
    )
    before = _closure(
        [logits.producer()],
        lambda node: (value.producer() for value in node.inputs if value is not None),
    )
    return [node for node in graph if node in after and node in before]


def _closure(start: Iterable[Any], follow: Any) -> set[Any]:
    found: set[Any] = set()
    waiting = [*start]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and node.op_type != "Shape":
            found.add(node)
            waiting.extend(follow(node))
    return found


def _unknown_form(what: str) -> ExportError:
    return ExportError(
        f"the graph is not of a form whose layers can be skipped ({what}): export the draft from "
        "the source, with --self-draft layers=…"
    )
