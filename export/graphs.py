"""Graphs from sources: mobius builds, our passes shape, one file and one data file come out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import mobius
import numpy as np
import onnx_ir as ir

from specplug.bundle import CacheLayout, Dialect
from specplug.export.attention import read_attention
from specplug.export.families import mobius_module
from specplug.export.passes import (
    ExplicitLengths,
    FuseSilu,
    HiddenStates,
    NextToken,
    PackGateUp,
    RotateOutside,
    ScoresFrom,
    SourceAttention,
    StandardAttention,
    StandardOperators,
    TreeAttention,
)
from specplug.export.passes.editing import MICROSOFT, attention_nodes
from specplug.export.source import Source
from specplug.types import ExportError

GRAPH = "model.onnx"
DATA = "model.onnx.data"

_DTYPES: dict[Any, Literal["float32", "float16", "bfloat16"]] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}


def build_fp32(source: Source, dialect: Dialect = "ort", hidden: Sequence[int] = ()) -> Any:
    """The graph of a source in fp32, sharing the source's tensors.

    Args:
        source: the checkpoint.
        dialect: the graph's.
        hidden: the layers whose inputs it gives beside the logits.
    """
    weights = dict(source.weights)
    module = mobius_module(source.config, weights)
    package = mobius.build_from_module(module, module.config, execution_provider="cpu")
    weights = module.preprocess_weights(weights)
    package.apply_weights(weights, prefix_map=getattr(module, "weight_prefix_map", None))
    model = package["model"]
    _fill_missing_biases(model.graph)
    _check_weights(model.graph, source)
    ir.passes.Sequential(
        ExplicitLengths(),
        SourceAttention(read_attention(source.config)),
        RotateOutside(),
        ScoresFrom(),
        FuseSilu(),
        PackGateUp(),
    )(model)
    _check_complete(model, source)
    if hidden:
        HiddenStates(hidden, int(source.config.hidden_size))(model)
    if dialect == "ort":
        TreeAttention()(model)
    if dialect == "standard":
        ir.passes.Sequential(StandardAttention(), StandardOperators(), NextToken())(model)
        model.opset_imports.pop(MICROSOFT, None)
    return model


def _fill_missing_biases(graph: Any) -> None:
    """Zeros where mobius expects a bias that the source does not have; parity proves them right."""
    for name, value in graph.initializers.items():
        if value.const_value is None and name.endswith(".bias"):
            value.const_value = ir.tensor(np.zeros(tuple(value.shape), dtype=np.float32), name=name)


def _check_weights(graph: Any, source: Source) -> None:
    empty = [name for name, value in graph.initializers.items() if value.const_value is None]
    if empty:
        raise ExportError(
            f"{source.path.name} has no weights for {', '.join(empty[:3])} of mobius's graph of "
            f"{source.config.model_type}: this variant of the architecture is not supported"
        )


def _check_complete(model: Any, source: Source) -> None:
    inputs = {value.name for value in model.graph.inputs}
    missing = {"seqlens_k", "total_sequence_length", "scores_from"} - inputs
    if missing or not attention_nodes(model.graph):
        raise ExportError(
            f"mobius's graph of {source.config.model_type} is not of the expected form "
            f"(no {', '.join(sorted(missing)) or 'GroupQueryAttention'}): use mobius-onnx==0.1.0"
        )


def save(model: Any, folder: Path) -> None:
    """Write ``model.onnx`` and ``model.onnx.data`` into a new folder."""
    folder.mkdir(parents=True)
    ir.save(model, folder / GRAPH, external_data=DATA)


def load(folder: Path) -> Any:
    """Read a saved graph; its weights stay on disk until they are used."""
    return ir.load(folder / GRAPH)


def cache_layout(model: Any) -> CacheLayout:
    """The layout of a graph's cache, read off its inputs."""
    keys = [value for value in model.graph.inputs if value.name.endswith(".key")]
    _, heads, _, head_size = keys[0].shape
    padded = any(value.name == "attention_rows" for value in model.graph.inputs)
    return CacheLayout(
        layers=len(keys),
        heads=int(heads),
        head_size=int(head_size),
        dtype=_DTYPES[keys[0].dtype],
        spare=1 if padded else 0,
    )
