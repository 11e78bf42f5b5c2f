"""Graphs that are there already: what Optimum or onnxruntime-genai's builder exported.

Their reference is the graph itself, run as it came. Graphs with GroupQueryAttention become the
``ort`` dialect by the passes that shape our own; the others append to their cache and stay as
they are, but for the slice before the LM head.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from specplug.arguments import checked
from specplug.bundle import (
    MANIFEST,
    Component,
    Manifest,
    write_manifest,
)
from specplug.bundle_files import describe_file
from specplug.bundle_paths import file_sha256
from specplug.engines.ort import OrtEngine
from specplug.engines.ort_concat import OrtConcatEngine
from specplug.export import graphs, measuring
from specplug.export.onnx_folder import (
    FLOATS,
    Settings,
    external_tensors,
    read_graph,
    read_settings,
)
from specplug.export.passes import (
    ExplicitLengths,
    FuseSilu,
    PackGateUp,
    PadAttention,
    ScoresFrom,
    SingleLogits,
)
from specplug.export.passes.editing import attention_nodes
from specplug.export.provenance import write_provenance
from specplug.export.quality_text import Sample, take_sample
from specplug.export.tokenizer_folder import end_tokens, folder_tokenizer, stated_end_tokens
from specplug.export.tokenizer_texts import first_line
from specplug.export.tokenizers import SourceTokenizer, encoder, write_tokenizer
from specplug.opening import EngineOptions
from specplug.staging import check_place, staged
from specplug.types import EngineError, ExportError, Float32Array, Step

_TOOLS = ("specplug", "onnx-ir", "onnxruntime")
_HALF_TOLERANCE = 2e-2
"""In place of :data:`specplug.export.measuring.PARITY_TOLERANCE`: calls of another width sum in
another order, and round to eleven bits."""


@checked()
def export_onnx(
    folder: str | Path,
    output: str | Path,
    *,
    quality_text: str | Path | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda stage: None,
) -> Manifest:
    """Make a bundle of an exported graph.

    Args:
        folder: where Optimum or onnxruntime-genai's builder wrote to.
        output: the bundle's folder; must not exist unless ``force``.
        quality_text: a text file to compare the two on; None: the built-in text.
        force: replace an existing bundle.
        report: told the name of each stage as it begins.

    Returns:
        The manifest that was written.

    Raises:
        ExportError: no graph there, or one of another form.
        ParityError: the bundle's graph does not reproduce the one it was made of.
    """
    folder = Path(folder)
    check_place(Path(output).absolute(), replace=force)
    if (folder / MANIFEST).is_file():
        raise ExportError(f"{folder} is a bundle, which was exported already")
    settings = read_settings(folder)
    report(f"reading {folder.name}")
    model = read_graph(folder, settings)
    tokenizer = folder_tokenizer(folder, _vocab_size(model), settings.end_tokens)
    ends = end_tokens(stated_end_tokens(folder) | settings.end_tokens, _vocab_size(model))
    with staged(Path(output), replace=force) as stage:
        text = Path(quality_text) if quality_text else None
        try:
            component = _write_component(folder, settings, model, tokenizer, text, stage, report)
        except ir.serde.SerdeError as error:  # names that are no text pass through reading
            raise ExportError(
                f"{folder / settings.graph} is damaged ({first_line(error)}): export it again"
            ) from error
        manifest = Manifest(
            target=component,
            tokenizer=write_tokenizer(tokenizer, stage) if tokenizer else None,
            stop_token_ids=list(ends) if not tokenizer and ends else None,
        )
        write_manifest(stage, manifest)
        report("writing to disk")
    return manifest


def onnx_tokenizer(folder: Path) -> SourceTokenizer | None:
    """The tokenizer beside an exported graph.

    Raises:
        ExportError: it cannot be read.
    """
    settings = read_settings(folder)
    model = read_graph(folder, settings)
    return folder_tokenizer(folder, _vocab_size(model), settings.end_tokens)


def _write_component(
    folder: Path,
    settings: Settings,
    model: Any,
    tokenizer: SourceTokenizer | None,
    quality_text: Path | None,
    stage: Path,
    report: Callable[[str], None],
) -> Component:
    layout, vocab_size = graphs.cache_layout(model), _vocab_size(model)
    data = {str(tensor.location) for tensor in external_tensors(model)}
    precision, parameters = _precision(model), _parameters(model)
    appending = not attention_nodes(model.graph)
    longest = settings.max_positions - 1  # a padded attention row takes one
    sample = take_sample(encoder(tokenizer), vocab_size, longest, quality_text)
    size: Any = {"vocab_size": vocab_size, "max_length": longest, "min_width": 1}
    report("running the graph as it is for reference")
    work = stage / "work"
    work.mkdir()
    try:
        # As it came, but for the names of its cache; both kinds can be run by appending.
        graphs.save(model, work / "graph")
        try:
            original = OrtConcatEngine(
                work / "graph" / graphs.GRAPH, cache=layout, options=EngineOptions(), **size
            )
            reference = _write_reference(original, sample, work / "reference.f32")
        except EngineError as error:
            raise ExportError(
                f"{settings.graph} does not run on ONNX Runtime's CPU provider as it is: "
                f"{first_line(error)}"
            ) from error
        report("writing the target")
        _shape(model, appending)
        layout = graphs.cache_layout(model)
        graphs.save(model, stage / "target")
        report("measuring the target")
        make = OrtConcatEngine if appending else OrtEngine
        path = f"target/{graphs.GRAPH}"
        engine = make(stage / path, cache=layout, options=EngineOptions(), **size)
        half = layout.dtype == "float16"
        tolerance = _HALF_TOLERANCE if half else measuring.PARITY_TOLERANCE
        parity = measuring.check_parity(engine, reference, tolerance)
        min_width = measuring.measure_min_width(engine, sample.tokens)
        if half:  # as in export.exporter: one row takes another kernel
            min_width = max(min_width, 2)
        quality = measuring.measure_quality(engine, reference)
        engine.close()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Component(
        dialect="concat" if appending else "ort",
        architecture=settings.architecture,
        precision=precision,
        parameters=parameters,
        graph=path,
        files=[
            describe_file(stage, str(file.relative_to(stage)))
            for file in sorted((stage / "target").iterdir())
        ],
        vocab_size=vocab_size,
        max_length=longest,
        min_width=min_width,
        cache=layout,
        parity=parity,
        quality=quality,
        provenance=write_provenance(
            folder.name,
            {name: file_sha256(folder / name) for name in sorted({settings.graph, *data})},
            _TOOLS,
        ),
    )


def _write_reference(engine: OrtConcatEngine, sample: Sample, path: Path) -> measuring.Reference:
    tokens, piece = sample.tokens, measuring.PIECE
    with path.open("wb") as out:
        for start in range(0, len(tokens), piece):
            step = Step(tokens=tokens[None, start : start + piece], past=np.array([start]))
            logits: Float32Array = engine.forward(step).logits()
            out.write(logits.tobytes())
    engine.close()
    return measuring.Reference(tokens, path, engine.spec.vocab_size, sample.text_sha256)


# --- the graph ---------------------------------------------------------------------------------


def _shape(model: Any, appending: bool) -> None:
    """Our passes, as far as they fit."""
    half = graphs.cache_layout(model).dtype == "float16"
    passes = [ScoresFrom()] if appending else [ExplicitLengths(), ScoresFrom()]
    if not appending and not half:  # whose steps are rounded as its maker wrote them
        passes += [FuseSilu(), PackGateUp()]
    if not appending and (half or _precision(model) != "fp32"):
        passes += [PadAttention()]
    ir.passes.Sequential(*passes, SingleLogits())(model)
    if not appending and any(value.name == "attention_mask" for value in model.graph.inputs):
        raise ExportError(
            "the graph uses its attention_mask for more than the lengths of GroupQueryAttention, "
            "which is not known here: give the checkpoint to `specplug export`"
        )


def _precision(model: Any) -> Literal["fp32", "fp16", "int4", "int8", "w8a8"]:
    bits = {
        node.attributes["bits"].value if "bits" in node.attributes else 4
        for node in model.graph
        if node.op_type == "MatMulNBits"
    }
    if bits:
        return "int4" if 4 in bits else "int8"
    integer = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    if any(node.op_type in integer for node in model.graph):
        return "w8a8"
    tensors = [value.const_value for value in model.graph.initializers.values()]
    sizes = {dtype: sum(t.size for t in tensors if t.dtype == dtype) for dtype in FLOATS}
    return "fp16" if sizes[ir.DataType.FLOAT16] > sizes[ir.DataType.FLOAT] else "fp32"


def _vocab_size(model: Any) -> int:
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    return int(logits.shape[2])


def _parameters(model: Any) -> int:
    """How many weights the graph's products, tables and norms hold, each once."""
    found: dict[str, int] = {}
    for node in model.graph:
        weights = [value for value in node.inputs if value is not None and value.is_initializer()]
        if node.op_type == "MatMulNBits":  # by its scales, which a table may share with it
            found[node.inputs[2].name] = node.attributes["K"].value * node.attributes["N"].value
        elif node.op_type == "GatherBlockQuantized":
            block = node.attributes["block_size"].value if "block_size" in node.attributes else 128
            found[node.inputs[2].name] = int(node.inputs[2].const_value.size) * block
        elif node.op_type not in ("GroupQueryAttention", "RotaryEmbedding", "Reshape"):
            for value in weights[: 1 if node.op_type == "DequantizeLinear" else None]:
                if value.const_value.dtype in _WEIGHTS and value.const_value.size > 1:
                    found[value.name] = int(value.const_value.size)
    return sum(found.values())


_INTEGERS = {ir.DataType.UINT8, ir.DataType.INT8, ir.DataType.UINT4, ir.DataType.INT4}
_WEIGHTS = {*FLOATS, *_INTEGERS}
