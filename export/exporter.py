"""The export of a bundle, from first byte read to the final rename."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from specplug.bundle import (
    CacheLayout,
    Component,
    Manifest,
    Parity,
    Provenance,
    describe_file,
    write_manifest,
)
from specplug.export import graphs, measuring
from specplug.export.attention import positions
from specplug.export.graphs import Precision
from specplug.export.pairing import check_pair
from specplug.export.precision import choose_precision
from specplug.export.source import Source, open_source
from specplug.export.staging import staged
from specplug.export.tokenizers import SourceTokenizer, encoder, write_tokenizer
from specplug.types import ExportError

Report = Callable[[str], None]

_TOOLS = ("specplug", "mobius-onnx", "onnx-ir", "onnxruntime", "torch", "transformers")


def export_bundle(
    source: str | Path,
    output: str | Path,
    *,
    precision: Literal["auto"] | Precision = "auto",
    draft: str | Path | None = None,
    self_draft: Precision | None = None,
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
        draft: the source of a smaller model with the same tokenizer, exported in the target's
            precision.
        self_draft: use the target itself, in this precision, as the draft.
        force: replace an existing bundle.
        report: told the name of each stage as it begins.
        note: told what the user should know, such as why a precision was picked.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: a source cannot be read or paired, or ``output`` is in the way.
        ParityError: a graph does not reproduce its source.
    """
    if draft is not None and self_draft is not None:
        raise ExportError("--draft and --self-draft exclude one another: give one")
    if precision == "auto":
        precision, reason = choose_precision()
        note(f"precision: {reason}")
    if self_draft == precision:
        raise ExportError(
            f"--self-draft {self_draft} is the target's own precision: it would save nothing"
        )
    with staged(Path(output), replace=force) as stage:
        plan = {"target": precision} | ({"draft": self_draft} if self_draft else {})
        components, tokenizer = _export_source(Path(source), plan, stage, report)
        if draft is not None:
            made, other = _export_source(Path(draft), {"draft": precision}, stage, report)
            components |= made
            check_pair(
                tokenizer, other, components["target"].vocab_size, components["draft"].vocab_size
            )
        manifest = Manifest(
            target=components["target"],
            draft=components.get("draft"),
            tokenizer=write_tokenizer(tokenizer, stage) if tokenizer else None,
        )
        write_manifest(stage, manifest)
        report("writing to disk")
    return manifest


@dataclass(frozen=True, slots=True)
class _Model:
    """What the components of one source share, once the source itself is closed."""

    architecture: str
    parameters: int
    vocab_size: int
    max_length: int
    layout: CacheLayout
    """Of the fp32 graph."""
    provenance: Provenance
    reference: measuring.Reference


def _export_source(
    path: Path, plan: dict[str, Precision], stage: Path, report: Report
) -> tuple[dict[str, Component], SourceTokenizer | None]:
    """Write each component of ``plan`` (name -> precision) from one source."""
    work = stage / "work"
    work.mkdir()
    try:
        report(f"reading {path.name}")
        model, tokenizer = _build(open_source(path), work, report)
        gc.collect()  # the weights: from here on they are on disk
        report("checking the graph against the source")
        engine = measuring.open_graph(
            work / "fp32" / graphs.GRAPH, model.layout, model.vocab_size, model.max_length
        )
        parity = measuring.check_parity(engine, model.reference)
        engine.close()
        components = {
            name: _write_component(name, precision, model, parity, work, stage, report)
            for name, precision in plan.items()
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return components, tokenizer


def _build(source: Source, work: Path, report: Report) -> tuple[_Model, SourceTokenizer | None]:
    """Write the source's reference logits and its fp32 graph into ``work``."""
    config = source.config
    # One position less than the model has: a padded attention row takes it.
    max_length = positions(config) - 1
    report("running the source for reference")
    tokens = measuring.sample_tokens(
        encoder(source.tokenizer), config.vocab_size, min(measuring.SAMPLE_TOKENS, max_length)
    )
    reference = measuring.write_reference(source.reference(), tokens, work / "reference.f32")
    report("building the graph")
    graph = graphs.build_fp32(source)
    graphs.save(graph, work / "fp32")
    model = _Model(
        architecture=config.model_type,
        parameters=source.parameters(),
        vocab_size=config.vocab_size,
        max_length=max_length,
        layout=graphs.cache_layout(graph),
        provenance=Provenance(
            source=source.name or source.path.name,
            revision=source.revision,
            sha256=source.hashes(),
            licence=source.licence,
            tools={tool: version(tool) for tool in _TOOLS},
        ),
        reference=reference,
    )
    return model, source.tokenizer


def _write_component(
    name: str,
    precision: Precision,
    model: _Model,
    parity: Parity,
    work: Path,
    stage: Path,
    report: Report,
) -> Component:
    report(f"writing the {name} in {precision}")
    graph = graphs.load(work / "fp32")
    graphs.apply_precision(graph, precision)
    layout = graphs.cache_layout(graph)
    graphs.save(graph, stage / name)
    del graph
    gc.collect()
    report(f"measuring the {name}")
    path = f"{name}/{graphs.GRAPH}"
    engine = measuring.open_graph(stage / path, layout, model.vocab_size, model.max_length)
    min_width = measuring.measure_min_width(engine, model.reference.tokens)
    quality = measuring.measure_quality(engine, model.reference)
    engine.close()
    return Component(
        architecture=model.architecture,
        precision=precision,
        parameters=model.parameters,
        graph=path,
        files=[describe_file(stage, f"{name}/{file}") for file in (graphs.GRAPH, graphs.DATA)],
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        min_width=min_width,
        cache=layout,
        parity=parity,
        quality=quality,
        provenance=model.provenance,
    )
