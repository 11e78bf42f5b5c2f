"""What an export would write, take and need, without doing it: ``specplug export --plan``.

Sources are opened, paired and turned into graphs as for an export, by the names and shapes of their
tensors alone. Sizes follow from the shapes; memory and time were measured on smaller exports
(benchmarks/results/export.json) and scale with what the stages work on.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir

from specplug.arguments import checked
from specplug.bundle import MANIFEST, Dialect
from specplug.export import graphs, piecewise
from specplug.export.attention import max_entries
from specplug.export.blocks import BLOCK_SIZE
from specplug.export.carried import carried_bytes_a_weight
from specplug.export.head_component import (
    FOLDER,
    TARGET,
    VOCABULARY,
    has_the_targets_table,
    head_dialect,
    head_graph,
    head_keep,
    head_precision,
)
from specplug.export.keeping import Keep, KeepMatching, keep_none
from specplug.export.pairing import TOKENIZER
from specplug.export.parts import Part, open_parts
from specplug.export.passes.editing import linear_layers
from specplug.export.passes.gather_blocks import token_lookups
from specplug.export.passes.half_weights import matrices
from specplug.export.precision import Precision
from specplug.export.quality_text import take_sample
from specplug.export.request import Report, Request
from specplug.export.rounding import bytes_a_weight, fits_kernel
from specplug.export.sharing import DRAFT_DATA, DRAFT_GRAPH
from specplug.export.source import preview_source
from specplug.export.speculators import HeadSource, has_table_of
from specplug.export.tensorrt import Target, plan_name, resolve
from specplug.export.tokenizers import encoder

_GRAPH_BYTES_A_LAYER = 8_000

# Seconds of an export on two cores (EPYC with AVX-512 VNNI), for each million parameters.
_START_SECONDS, _SECONDS_A_SOURCE = 8.0, 0.06
_SECONDS_A_COMPONENT: Mapping[Precision, float] = {
    "fp32": 0.04,
    "fp16": 0.05,
    "bf16": 0.05,
    "w8a8": 0.02,
    "int8": 0.05,
    "int4": 0.08,
    "gguf": 0.08,
}

_SECONDS_A_TENSORRT_PLAN = 0.15

_START_BYTES = 600e6  # Python with torch, transformers, mobius and ONNX Runtime


@dataclass(frozen=True, slots=True)
class Plan:
    """What an export would come to. Sizes in bytes, good to a few per cent."""

    files: dict[str, int]
    """Of the bundle, by path inside it."""
    scratch_bytes: int
    """Of disk beside the bundle's, while it is made."""
    free_bytes: int
    """Of disk, there now."""
    download_bytes: int
    """From the Hub."""
    memory_bytes: int
    """At the peak; roughly."""
    seconds: float
    """Without the download; roughly."""

    @property
    def bundle_bytes(self) -> int:
        """The bundle's size."""
        return sum(self.files.values())

    @property
    def fits(self) -> bool:
        """Whether the disk has room for the bundle and what is made on the way."""
        return self.bundle_bytes + self.scratch_bytes <= self.free_bytes


@checked()
def plan_export(
    source: str | Path,
    output: str | Path,
    *,
    precision: Literal["auto"] | Precision = "auto",
    draft: str | Path | None = None,
    self_draft: str | None = None,
    keep_fp32: str | None = None,
    quality_text: str | Path | None = None,
    dialect: Dialect = "ort",
    tensorrt: Target | None = None,
    force: bool = False,
    report: Report = lambda stage: None,
    note: Report = lambda text: None,
) -> Plan:
    """Check an export and say what it would write, without writing it or downloading weights.

    Args and errors are those of :func:`specplug.export.export_bundle`.
    """
    tensorrt = resolve(tensorrt) if tensorrt else None
    request = Request(
        source, precision, draft, self_draft, keep_fp32, quality_text, dialect, tensorrt
    )
    output = Path(output).absolute()
    request.check(output, replace=force)
    parts = open_parts(request, report=report, note=note, opening=preview_source)
    files: dict[str, int] = {}
    scratch, memory, seconds = [0], [0.0], _START_SECONDS
    for part in parts:
        report(f"planning {', '.join(part.components)}")
        made = _plan_part(part, request)
        if part.other_tokens is not None:
            made.files[TOKENIZER] = len(part.other_tokens.tokenizer.json.encode())
        files |= made.files
        scratch.append(made.scratch_bytes)
        memory.append(made.memory_bytes)
        seconds += made.seconds
    tokenizer = parts[0].source.tokenizer
    if tokenizer:
        files["tokenizer.json"] = len(tokenizer.json.encode())
    files[MANIFEST] = 4_000 + len((tokenizer.chat_template or "") if tokenizer else "")
    return Plan(
        files=files,
        scratch_bytes=max(scratch),
        free_bytes=shutil.disk_usage(output.parent).free,
        download_bytes=sum({id(p.source): p.source.download_bytes for p in parts}.values()),
        memory_bytes=round(_START_BYTES + max(memory)),
        seconds=seconds,
    )


@dataclass(frozen=True, slots=True)
class _PartPlan:
    files: dict[str, int]
    scratch_bytes: int
    memory_bytes: float
    seconds: float


def _plan_part(part: Part, request: Request) -> _PartPlan:
    source = part.source
    longest = max_entries(source.config)
    text = Path(request.quality_text) if request.quality_text else None
    sample = take_sample(encoder(source.tokenizer), source.config.vocab_size, longest, text)
    graph = graphs.build_fp32(source, request.dialect, part.hidden).graph
    fp32 = [value.const_value.nbytes for value in graph.initializers.values()]
    logits = 4 * len(sample.tokens) * int(source.config.vocab_size)
    millions = source.parameters() / 1e6
    files: dict[str, int] = {}
    seconds = _SECONDS_A_SOURCE * millions
    memory = 1.1 * min(sum(fp32), max(piecewise.PIECE_BYTES, max(fp32))) + 3 * logits
    for name, precision in part.components.items():
        carried = carried_bytes_a_weight(source.path) if precision == "gguf" else None
        keep = KeepMatching(request.keep_fp32) if request.keep_fp32 else None
        size = _weight_bytes(graph, precision, request.dialect, keep or keep_none, carried)
        if keep and precision != "fp32":
            keep.check_matched()
        files[f"{name}/{graphs.GRAPH}"] = _GRAPH_BYTES_A_LAYER * source.config.num_hidden_layers
        files[f"{name}/{graphs.DATA}"] = size
        for capability in request.tensorrt.compute_capabilities if request.tensorrt else ():
            files[f"{name}/{plan_name(capability)}"] = size
            seconds += _SECONDS_A_TENSORRT_PLAN * millions
        seconds += _SECONDS_A_COMPONENT[precision] * millions
        # At once: what is written and a tensor on its way; all of it where it runs in fp32.
        computed = 1.15 * sum(fp32) if precision in ("fp32", "fp16", "bf16") else 0.0
        memory = max(memory, size + max(fp32), computed)
    if part.head is not None:
        files |= _plan_head(part, part.head, graph, request)
    return _PartPlan(
        files=files,
        scratch_bytes=sum(fp32) + logits,
        memory_bytes=memory,
        seconds=seconds,
    )


def _plan_head(
    part: Part, source: HeadSource, target_graph: Any, request: Request
) -> dict[str, int]:
    """A head's files with their sizes."""
    target = part.components["target"]
    dialect = head_dialect(source, request.dialect)
    graph = head_graph(source.head, dialect, source.table).graph
    precision = head_precision(source, target, request.dialect)
    keep = head_keep(source, target, request.dialect, request.keep_fp32)
    folder, names = FOLDER, (graphs.GRAPH, graphs.DATA)
    table_is_theirs = has_the_targets_table(source, target, request.dialect)
    if table_is_theirs and has_table_of(source, part.source):
        folder, names = TARGET, (DRAFT_GRAPH, DRAFT_DATA)
        for name, value in graph.initializers.items():
            if name == source.table or _is_in(target_graph, value):
                value.const_value = ir.tensor(value.const_value.numpy()[:1])  # next to nothing
    sizes = _GRAPH_BYTES_A_LAYER, _weight_bytes(graph, precision, dialect, keep, None)
    files = {f"{folder}/{name}": size for name, size in zip(names, sizes, strict=True)}
    if source.vocabulary is not None:
        files[f"{folder}/{VOCABULARY}"] = source.vocabulary.nbytes
    return files


def _is_in(graph: Any, value: Any) -> bool:
    """Whether a graph has a tensor of this name, the same bytes."""
    theirs, ours = graph.initializers.get(value.name), value.const_value
    if theirs is None or theirs.const_value.nbytes != ours.nbytes:
        return False
    return bool(theirs.const_value.tobytes() == ours.tobytes())


def _weight_bytes(
    graph: Any, precision: Precision, dialect: Dialect, keep: Keep, carried: float | None
) -> int:
    """Of the graph's weights in that precision; ``carried`` for each, in precision gguf."""
    size: int = sum(value.const_value.nbytes for value in graph.initializers.values())
    if precision == "fp32":
        return size
    if dialect == "standard" and precision in ("fp16", "bf16"):
        return size // 2
    if dialect == "standard":
        size += _change_of_blocks(graph, precision, keep)
    elif precision in ("fp16", "bf16"):
        size -= sum(value.const_value.nbytes // 2 for value in matrices(graph, keep))
    else:
        size += _change_of_layers(graph, precision, keep, carried)
    return size


def _change_of_blocks(graph: Any, precision: Precision, keep: Keep) -> int:
    """Of a standard graph, whose tables stay as they are."""
    change = 0
    for layer in linear_layers(graph):
        if keep(layer) or not fits_kernel(precision, layer.shape):
            continue
        bits = 8 if layer.is_head or precision == "int8" else 4
        change += math.prod(layer.shape) * bits // 8 + 4 * math.prod(layer.shape) // BLOCK_SIZE
        if len(layer.factor.uses()) == 1:
            change -= layer.factor.const_value.nbytes
    return change


def _change_of_layers(graph: Any, precision: Precision, keep: Keep, carried: float | None) -> int:
    change = 0
    replaced: dict[str, int] = {}
    heads = set()
    for layer in linear_layers(graph):
        if keep(layer) or not fits_kernel(precision, layer.shape):
            continue
        each = carried or bytes_a_weight(precision, layer.shape, is_head=layer.is_head)
        change += round(math.prod(layer.shape) * each)
        replaced[layer.factor.name] = layer.factor.const_value.nbytes
        if layer.is_head and precision != "w8a8":
            heads.add(layer.factor.name)
    for table in token_lookups(graph):
        shared = len(table.factor.uses()) > 1
        if keep(table) or (shared and table.name not in replaced):
            replaced.pop(table.name, None)
            continue
        replaced[table.name] = table.factor.const_value.nbytes
        if table.name not in heads:  # else it is looked up in the head's blocks
            each = bytes_a_weight("int8", table.shape, is_head=False)
            change += round(math.prod(table.shape) * each)
    return change - sum(replaced.values())
