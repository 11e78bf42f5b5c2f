"""The export of a bundle, from first byte read to the final rename."""

from __future__ import annotations

import gc
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from specplug.bundle import (
    Component,
    Manifest,
    Parity,
    Provenance,
    TokenizerPart,
    describe_file,
    write_manifest,
)
from specplug.export import graphs, measuring
from specplug.export.graphs import Precision
from specplug.export.precision import choose_precision
from specplug.export.source import Source, SourceTokenizer, open_source, vocabulary
from specplug.export.staging import staged
from specplug.types import ExportError

Report = Callable[[str], None]
"""Told the name of each stage as it begins."""

_TOOLS = ("specplug", "mobius-onnx", "onnx-ir", "onnxruntime", "torch", "transformers")
_QUALITY_TOKENS = 640


def export_bundle(
    source: str | Path,
    output: str | Path,
    *,
    precision: Literal["auto"] | Precision = "auto",
    draft: str | Path | None = None,
    self_draft: Precision | None = None,
    force: bool = False,
    report: Report = lambda stage: None,
) -> Manifest:
    """Export a model, and a draft for it if asked for, into a bundle.

    Args:
        source: a GGUF file or a Hugging Face folder with safetensors.
        output: the bundle's folder; must not exist unless ``force``.
        precision: of the target; ``"auto"`` picks by the machine's instructions.
        draft: the source of a smaller model with the same tokenizer, exported in the target's
            precision.
        self_draft: use the target itself, in this precision, as the draft.
        force: replace an existing bundle.
        report: called with a line for each stage.

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
        report(f"precision: {reason}")
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
            _check_pair(tokenizer, other)
        manifest = Manifest(
            target=components["target"],
            draft=components.get("draft"),
            tokenizer=_write_tokenizer(tokenizer, stage) if tokenizer else None,
        )
        write_manifest(stage, manifest)
        report("writing to disk")
    return manifest


@dataclass(frozen=True, slots=True)
class _Model:
    """What components of one source share."""

    config_type: str
    parameters: int
    vocab_size: int
    max_length: int
    parity: Parity
    provenance: Provenance
    reference: measuring.Reference


def _export_source(
    path: Path, plan: dict[str, Precision], stage: Path, report: Report
) -> tuple[dict[str, Component], SourceTokenizer | None]:
    """Write each component of ``plan`` (name -> precision) from one source."""
    work = stage / "work"
    try:
        report(f"reading {path.name}")
        source = open_source(path)
        tokenizer = source.tokenizer
        model = _build(source, work, report)
        del source
        gc.collect()
        components = {
            name: _write_component(name, precision, model, work, stage, report)
            for name, precision in plan.items()
        }
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return components, tokenizer


def _build(source: Source, work: Path, report: Report) -> _Model:
    """The fp32 graph in ``work``, checked against the source."""
    work.mkdir()
    config = source.config
    report("running the source for reference")
    tokens = measuring.sample_tokens(
        _encoder(source.tokenizer), config.vocab_size, min(_QUALITY_TOKENS, config.max_position_embeddings - 1)
    )
    reference = measuring.write_reference(source.reference(), tokens, work / "reference.f32")
    report("building the graph")
    graph = graphs.build_fp32(source)
    layout = graphs.cache_layout(graph)
    graphs.save(graph, work / "fp32")
    del graph
    report("checking the graph against the source")
    # One position less than the model has: a padded attention row takes it.
    max_length = config.max_position_embeddings - 1
    engine = measuring.open_graph(
        work / "fp32" / graphs.GRAPH, layout, config.vocab_size, max_length
    )
    parity = measuring.check_parity(engine, reference)
    engine.close()
    return _Model(
        config_type=config.model_type,
        parameters=source.parameters(),
        vocab_size=config.vocab_size,
        max_length=max_length,
        parity=parity,
        provenance=Provenance(
            source=source.path.name,
            sha256=source.hashes(),
            licence=source.licence,
            tools={tool: version(tool) for tool in _TOOLS},
        ),
        reference=reference,
    )


def _write_component(
    name: str, precision: Precision, model: _Model, work: Path, stage: Path, report: Report
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
        architecture=model.config_type,
        precision=precision,
        parameters=model.parameters,
        graph=path,
        files=[describe_file(stage, f"{name}/{file}") for file in (graphs.GRAPH, graphs.DATA)],
        vocab_size=model.vocab_size,
        max_length=model.max_length,
        min_width=min_width,
        cache=layout,
        parity=model.parity,
        quality=quality,
        provenance=model.provenance,
    )


def _encoder(tokenizer: SourceTokenizer | None) -> Callable[[str], list[int]] | None:
    if tokenizer is None:
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_str(tokenizer.json)
    return lambda text: list(backend.encode(text).ids)


def _check_pair(target: SourceTokenizer | None, draft: SourceTokenizer | None) -> None:
    """A draft must speak the target's tokens."""
    if target is None or draft is None:
        return  # nothing to compare but the sizes, which the manifest does
    ours, theirs = vocabulary(target.json), vocabulary(draft.json)
    for token in sorted(ours.keys() | theirs.keys(), key=lambda t: ours.get(t, theirs.get(t, 0))):
        if ours.get(token) != theirs.get(token):
            raise ExportError(
                f"the draft's tokenizer differs from the target's: token {token!r} is "
                f"{theirs.get(token, 'unknown')} there and {ours.get(token, 'unknown')} here; "
                "export a draft with the target's tokenizer"
            )


def _write_tokenizer(tokenizer: SourceTokenizer, stage: Path) -> TokenizerPart:
    (stage / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    tokens = sorted(vocabulary(tokenizer.json).items())
    return TokenizerPart(
        file=describe_file(stage, "tokenizer.json"),
        vocabulary_sha256=hashlib.sha256(repr(tokens).encode()).hexdigest(),
        stop_token_ids=list(tokenizer.stop_token_ids),
        special_tokens=dict(tokenizer.special_tokens),
        chat_template=tokenizer.chat_template,
    )
