"""The export of a bundle, from first byte read to the final rename."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from specplug.arguments import checked
from specplug.bundle import (
    CacheLayout,
    Component,
    Dialect,
    HiddenOutput,
    Manifest,
    Parity,
    Provenance,
    TensorRTPlan,
    write_manifest,
)
from specplug.bundle_files import describe_file
from specplug.export import graphs, measuring
from specplug.export.attention import max_entries
from specplug.export.continuations import NAME, ROWS, write_continuations
from specplug.export.head_component import head_precision, write_head
from specplug.export.keeping import KeepMatching, keep_none
from specplug.export.parts import Part, open_parts
from specplug.export.passes import HalfWeights
from specplug.export.piecewise import PiecewiseEngine
from specplug.export.precision import Precision
from specplug.export.provenance import write_provenance
from specplug.export.quality_text import take_sample
from specplug.export.request import Report, Request
from specplug.export.rounding import apply_precision
from specplug.export.sharing import DRAFT_GRAPH, share_weights
from specplug.export.source import Source
from specplug.export.speculators import HeadSource
from specplug.export.tensorrt import Target, build_plans, resolve
from specplug.export.tokenizers import encoder, write_tokenizer
from specplug.staging import staged

_TOOLS = ("specplug", "mobius-onnx", "onnx-ir", "onnxruntime", "torch", "transformers")


@checked()
def export_bundle(
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
    continuations: bool = False,
    hidden: Sequence[int] = (),
    force: bool = False,
    report: Report = lambda stage: None,
    note: Report = lambda text: None,
) -> Manifest:
    """Export a model, and a draft for it if asked for, into a bundle.

    Args:
        source: a GGUF file, a Hugging Face folder with safetensors, or a Hub id (``org/name`` or
            ``org/name@revision``).
        output: the bundle's folder; must not exist unless ``force``.
        precision: of the target; ``"auto"`` picks by the machine's instructions.
        draft: the source of a smaller model, best with the same tokenizer, or a folder with a head
            in the format of the ``speculators`` library, exported in the target's precision.
        self_draft: use the target itself as the draft, in a lower precision (``"int4"``), with
            some of its layers (``"layers=0-9,20-29"``), or both (``"int4:layers=0-9,20-29"``).
        keep_fp32: regular expression; layers with a weight whose name it matches are left in fp32
            in every component that is not fp32 anyway.
        quality_text: a UTF-8 file to measure quality on, in place of the built-in text.
        dialect: ``"ort"`` for ONNX Runtime, or ``"standard"``: operators of ONNX alone.
        tensorrt: build plans of the graphs, of the standard dialect, for these GPUs, too.
        continuations: note what the target says after every token alone, for token recycling to
            begin with; a call for every 64 tokens of the vocabulary.
        hidden: layers of the target whose inputs its graph gives as hidden states, for a head to
            read; those of ``draft`` where that is a head.
        force: replace an existing bundle.
        report: told the name of each stage as it begins.
        note: told what the user should know, such as why a precision was picked.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: a source cannot be read or paired, or ``output`` is in the way.
        ParityError: a graph does not reproduce its source.
    """
    tensorrt = resolve(tensorrt) if tensorrt else None
    request = Request(
        source, precision, draft, self_draft, keep_fp32, quality_text, dialect, tensorrt, hidden
    )
    request.check(Path(output), replace=force)
    text = Path(quality_text) if quality_text else None
    how = _How(keep_fp32, dialect, tensorrt, continuations, text, report, note)
    with staged(Path(output), replace=force) as stage:
        parts = open_parts(request, report=report, note=note)
        components: dict[str, Component] = {}
        for part in parts:
            components |= _export_part(part, stage, how)
            if part.head is not None:
                components["draft"] = _export_head(part.head, components["target"], stage, how)
        tokenizer, ends = parts[0].source.tokenizer, list(parts[0].source.end_tokens)
        manifest = Manifest(
            target=components["target"],
            draft=components.get("draft"),
            tokenizer=write_tokenizer(tokenizer, stage) if tokenizer else None,
            stop_token_ids=ends if not tokenizer and ends else None,
        )
        write_manifest(stage, manifest)
        report("writing to disk")
    return manifest


@dataclass(frozen=True, slots=True)
class _How:
    """What the user asked for, beside sources and precisions."""

    keep_fp32: str | None
    dialect: Dialect
    tensorrt: Target | None
    continuations: bool
    quality_text: Path | None
    report: Report
    note: Report


@dataclass(frozen=True, slots=True)
class _Model:
    """What the components of one source share."""

    source: Source
    max_length: int
    layout: CacheLayout
    """Of the fp32 graph."""
    provenance: Provenance
    reference: measuring.Reference

    @property
    def vocab_size(self) -> int:
        return int(self.source.config.vocab_size)


def _export_part(part: Part, stage: Path, how: _How) -> dict[str, Component]:
    """Write the components of one source."""
    work = stage / "work"
    work.mkdir()
    try:
        model = _build(part.source, work, how, part.hidden)
        how.report("checking the graph against the source")
        engine = PiecewiseEngine(
            work / "fp32",
            dialect=how.dialect,
            cache=model.layout,
            vocab_size=model.vocab_size,
            max_length=model.max_length,
        )
        parity = measuring.check_parity(engine, model.reference)
        if part.hidden:
            measuring.check_hidden(engine, part.source.reference(), model.reference, part.hidden)
        engine.close()
        return {
            name: _write_component(name, precision, model, parity, work, stage, how, part)
            for name, precision in part.components.items()
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _export_head(source: HeadSource, target: Component, stage: Path, how: _How) -> Component:
    precision = head_precision(source, target.precision, how.dialect)
    how.report(f"writing the head in {precision}")
    return write_head(source, target.precision, how.dialect, how.keep_fp32, stage, _TOOLS)


def _build(source: Source, work: Path, how: _How, hidden: tuple[int, ...]) -> _Model:
    """Write the source's reference logits and its fp32 graph into ``work``."""
    config = source.config
    max_length = max_entries(config)
    how.report("running the source for reference")
    sample = take_sample(encoder(source.tokenizer), config.vocab_size, max_length, how.quality_text)
    reference = measuring.write_reference(source.reference(), sample, work / "reference.f32")
    how.report("building the graph")
    graph = graphs.build_fp32(source, how.dialect, hidden)
    graphs.save(graph, work / "fp32")
    return _Model(
        source=source,
        max_length=max_length,
        layout=graphs.cache_layout(graph),
        provenance=write_provenance(
            source.name or source.path.name,
            source.hashes(),
            _TOOLS,
            revision=source.revision,
            licence=source.licence,
        ),
        reference=reference,
    )


def _write_component(
    name: str,
    precision: Precision,
    model: _Model,
    parity: Parity,
    work: Path,
    stage: Path,
    how: _How,
    part: Part,
) -> Component:
    how.report(f"writing the {name} in {precision}")
    config, graph = model.source.config, graphs.load(work / "fp32")
    rounded_again = _round(graph, precision, model, how)
    layout = graphs.cache_layout(graph)
    place, graph_name = name, graphs.GRAPH
    layers = part.layers if name == "draft" else None
    if layers and share_weights(graph, stage / "target", layers):
        place, graph_name = "target", DRAFT_GRAPH
    else:
        graphs.save(graph, stage / name)
    del graph
    gc.collect()
    how.report(f"measuring the {name}")
    runnable, its_layout = stage / place / graph_name, layout
    if how.dialect == "standard" and precision == "bf16":
        runnable, its_layout = _write_stand_in(work) / graphs.GRAPH, model.layout
    engine = measuring.open_graph(
        runnable, how.dialect, its_layout, model.vocab_size, model.max_length
    )
    min_width = measuring.measure_min_width(engine, model.reference.tokens)
    if layout.dtype != "float32":
        # Products of one row take another kernel, and rounding hides that from most samples.
        min_width = max(min_width, 2)
    tree_difference = measuring.measure_tree_difference(engine, model.reference.tokens)
    quality = measuring.measure_quality(engine, model.reference)
    engine.close()
    files = [f"{place}/{file}" for file in (graph_name, graphs.DATA)]
    continuations = None
    if how.continuations and name == "target":
        continuations = f"{place}/{NAME}"
        files.append(continuations)
        engine = measuring.open_graph(
            runnable, how.dialect, its_layout, model.vocab_size, model.max_length, ROWS
        )
        write_continuations(
            engine,
            stage / continuations,
            lambda done: how.report(f"noting continuations: {done:.0%}"),
        )
        engine.close()
    plans: list[TensorRTPlan] = []
    if how.tensorrt:

        def building(doing: str, done: float) -> None:
            how.report(f"building the {name} with TensorRT: {doing} {done:.0%}")

        capacity = min(how.tensorrt.capacity, model.max_length)
        target = replace(how.tensorrt, capacity=capacity)
        plans = build_plans(stage / files[0], target, stage / name, building)
        files += [plan.path for plan in plans]
    return Component(
        engine="tensorrt" if plans else "onnxruntime",
        dialect=how.dialect,
        architecture=config.model_type,
        precision=precision,
        keep_fp32=how.keep_fp32 if precision != "fp32" else None,
        rounded_again=rounded_again,
        parameters=model.source.parameters(),
        graph=files[0],
        files=[describe_file(stage, file) for file in files],
        plans=plans,
        continuations=continuations,
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        min_width=min_width,
        tree_difference=tree_difference,
        layers=list(layers) if layers else None,
        hidden=HiddenOutput(layers=list(part.hidden), size=len(part.hidden) * config.hidden_size)
        if part.hidden and name == "target"
        else None,
        own_tokenizer=part.other_tokens.write(stage) if part.other_tokens else None,
        cache=layout,
        parity=parity,
        quality=quality,
        provenance=model.provenance,
    )


def _write_stand_in(work: Path) -> Path:
    """A graph with the weights of bf16 that computes in fp32: ONNX Runtime does not in bf16."""
    graph = graphs.load(work / "fp32")
    HalfWeights("bf16")(graph)
    graphs.save(graph, work / "stand-in")
    return work / "stand-in"


def _round(graph: Any, precision: Precision, model: _Model, how: _How) -> dict[str, int]:
    """Apply the precision; the GGUF tensors, by type, that could not keep their blocks."""
    keep = KeepMatching(how.keep_fp32) if how.keep_fp32 and precision != "fp32" else None
    carried = None
    if precision == "gguf":
        from specplug.export.carried import CarriedBlocks

        carried = CarriedBlocks(model.source.path)
    apply_precision(graph, precision, dialect=how.dialect, keep=keep or keep_none, carried=carried)
    if keep:
        keep.check_matched()
    if carried is None:
        return {}
    how.note(f"precision gguf: {carried.summary()}")
    return carried.rounded()
