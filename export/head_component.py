"""A head as a component of a bundle: graph, vocabulary, and whence it comes."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any, Literal

from specplug.bundle import Block, Component, Dialect, Head
from specplug.bundle_files import describe_file
from specplug.engines.ort import OrtEngine
from specplug.engines.ort_standard import OrtStandardEngine
from specplug.export import graphs
from specplug.export.block_graph import build_block_head
from specplug.export.block_head import BlockHead, BlockShape
from specplug.export.head import Head as HeadModule
from specplug.export.head import HeadShape
from specplug.export.head_graph import build_head
from specplug.export.head_parity import check_block_head, check_head
from specplug.export.keeping import Keep, KeepMatching, keep_none
from specplug.export.precision import Precision
from specplug.export.provenance import write_provenance
from specplug.export.rounding import apply_precision
from specplug.export.sharing import DRAFT_DATA, DRAFT_GRAPH, share_table
from specplug.export.speculators import HeadSource
from specplug.opening import EngineOptions
from specplug.types import Engine

FOLDER, TARGET, VOCABULARY = "draft", "target", "vocabulary.i32"

_WIDE = ("fp32", "fp16", "bf16")
_IN_STANDARD: dict[Precision, Precision] = {"w8a8": "int8", "gguf": "int4"}
"""What stands in the standard dialect for precisions of the others."""


def head_dialect(source: HeadSource, target: Dialect) -> Dialect:
    """A head's, by its target's: where tokens see later ones, attention takes a mask."""
    return "standard" if isinstance(source.head, BlockHead) else target


def head_graph(head: HeadModule | BlockHead, dialect: Dialect, table: str) -> Any:
    """The graph of a head of either kind; see :func:`build_head`."""
    if isinstance(head, BlockHead):
        return build_block_head(head, table)
    return build_head(head, dialect, table)


def head_precision(source: HeadSource, target: Precision, dialect: Dialect) -> Precision:
    """A head's, by its target's: a file's own blocks are not the head's, and what is stored in
    8 bits is no better in more of them, only slower."""
    if head_dialect(source, dialect) != dialect:
        return _IN_STANDARD.get(target, target)
    if source.eight_bits and dialect == "ort" and target in _WIDE:
        return "w8a8"
    return "int4" if target == "gguf" else target


def has_the_targets_table(source: HeadSource, target: Precision, dialect: Dialect) -> bool:
    """Whether a target's embedding, if it is the head's, has the same bytes in both graphs: it is
    rounded alike, or stays in fp32 in the head as in the target."""
    alike = head_dialect(source, dialect) == dialect
    return target == "fp32" or (alike and target == head_precision(source, target, dialect))


def keep_outliers(precision: Precision) -> Keep:
    """Beside 8 bits the layer stays in fp32 that reads the target's hidden states, whose outliers
    leave too few of these to the rest (arXiv:2402.17762). It is called once a round."""
    return KeepMatching(r"^fc\.") if precision == "w8a8" else keep_none


def head_keep(source: HeadSource, target: Precision, dialect: Dialect, pattern: str | None) -> Keep:
    """Which of a head's layers stay in fp32: those asked for, the table if the target's is, and
    the one with outliers."""
    kept = [keep_outliers(head_precision(source, target, dialect))]
    if pattern:
        kept.append(KeepMatching(pattern))
    if target == "fp32":
        kept.append(KeepMatching(f"^{re.escape(source.table)}$"))
    return lambda layer: any(keep(layer) for keep in kept)


def write_head(
    source: HeadSource,
    target: Precision,
    dialect: Dialect,
    keep_fp32: str | None,
    stage: Path,
    tools: tuple[str, ...],
) -> Component:
    """Write a head into a bundle that is being made.

    Args:
        source: the head.
        target: the precision of the target.
        dialect: of its graph.
        keep_fp32: regular expression over its weights' names: layers that stay in fp32.
        stage: the bundle's folder, where the target is already.
        tools: packages whose versions the provenance names.

    Raises:
        ParityError: the graph does not reproduce the module.
    """
    head, shape = source.head, source.head.shape
    work = stage / "work"
    precision = head_precision(source, target, dialect)
    keep = head_keep(source, target, dialect, keep_fp32)
    dialect = head_dialect(source, dialect)
    graph = head_graph(head, dialect, source.table)
    graphs.save(graph, work)
    engine = open_head_graph(work, graph, head.shape, dialect)
    if isinstance(head, BlockHead):
        parity = check_block_head(engine, head)
    else:
        parity = check_head(engine, head)
    engine.close()
    shutil.rmtree(work)
    graph = head_graph(head, dialect, source.table)
    apply_precision(graph, precision, dialect=dialect, keep=keep, same_at_any_width=False)
    layout = graphs.cache_layout(graph)
    if share_table(graph, stage / TARGET, source.table):
        files = [f"{TARGET}/{name}" for name in (DRAFT_GRAPH, DRAFT_DATA, graphs.DATA)]
    else:
        graphs.save(graph, stage / FOLDER)
        files = [f"{FOLDER}/{name}" for name in (graphs.GRAPH, graphs.DATA)]
    kind: Literal["eagle3", "dflash"] = "eagle3"
    block = None
    if isinstance(shape, BlockShape):
        kind, size = "dflash", shape.block
        block = Block(size=size, mask_token=shape.mask_token, first_guess=shape.first_guess)
    vocabulary = None
    if source.vocabulary is not None:
        vocabulary = f"{files[0].partition('/')[0]}/{VOCABULARY}"
        source.vocabulary.astype("<i4").tofile(stage / vocabulary)
        files.append(vocabulary)
    return Component(
        dialect=dialect,
        architecture=kind,
        precision=precision,
        keep_fp32=keep_fp32 if precision != "fp32" else None,
        parameters=source.parameters(),
        graph=files[0],
        files=[describe_file(stage, file) for file in files],
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        min_width=1,
        head=Head(
            kind=kind,
            features=shape.features,
            hidden_size=shape.hidden_size,
            input_vocab_size=shape.input_vocab_size,
            vocabulary=vocabulary,
            block=block,
        ),
        cache=layout,
        parity=parity,
        quality=None,
        provenance=write_provenance(
            source.path.name, source.hashes(), tools, licence=source.licence
        ),
    )


def open_head_graph(
    folder: Path, graph: object, shape: HeadShape, dialect: Dialect, max_batch: int = 1
) -> Engine:
    """An engine over a head's graph that was saved in a folder."""
    made = OrtStandardEngine if dialect == "standard" else OrtEngine
    return made(
        folder / graphs.GRAPH,
        cache=graphs.cache_layout(graph),
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        min_width=1,
        input_vocab_size=shape.input_vocab_size,
        options=EngineOptions(max_batch=max_batch),
    )
