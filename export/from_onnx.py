"""Graphs that are there already: what Optimum or onnxruntime-genai's builder exported.

Their reference is the graph itself, run as it came. Graphs with GroupQueryAttention become the
``ort`` dialect by the passes that shape our own; the others append to their cache and stay as
they are, but for the slice before the LM head.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from specplug.bundle import (
    Component,
    Manifest,
    describe_file,
    file_sha256,
    write_manifest,
)
from specplug.engines.ort import OrtEngine
from specplug.engines.ort_concat import OrtConcatEngine
from specplug.export import graphs, measuring
from specplug.export.passes import ExplicitLengths, FuseSilu, PackGateUp, PadAttention, ScoresFrom
from specplug.export.passes.editing import attention_nodes
from specplug.export.provenance import write_provenance
from specplug.export.quality_text import Sample, take_sample
from specplug.export.tokenizer_folder import folder_tokenizer
from specplug.export.tokenizers import SourceTokenizer, encoder, write_tokenizer
from specplug.opening import EngineOptions
from specplug.staging import staged
from specplug.types import ExportError, Float32Array, Step

_GENAI = "genai_config.json"
_KINDS = ("key", "value")
_TOOLS = ("specplug", "onnx-ir", "onnxruntime")


@dataclass(frozen=True, slots=True)
class _Settings:
    """What a folder's configuration says of its graph, whichever tool wrote it."""

    graph: str
    architecture: str
    max_positions: int
    end_tokens: dict[str, Any]
    """What it says of them, by file, beside the files that every folder may have."""
    head_size: int | None
    """None: the graph itself says it."""
    cache_names: tuple[tuple[str, str], ...]
    """Names of layer N's past and present, with %d for N: keys, then values."""
    config: str
    """The file that says so."""


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
    settings = _read_settings(folder)
    report(f"reading {folder.name}")
    model = _read_graph(folder / settings.graph, settings)
    tokenizer = folder_tokenizer(folder, _vocab_size(model), settings.end_tokens)
    with staged(Path(output), replace=force) as stage:
        text = Path(quality_text) if quality_text else None
        component = _write_component(folder, settings, model, tokenizer, text, stage, report)
        manifest = Manifest(
            target=component,
            tokenizer=write_tokenizer(tokenizer, stage) if tokenizer else None,
        )
        write_manifest(stage, manifest)
        report("writing to disk")
    return manifest


def onnx_tokenizer(folder: Path) -> SourceTokenizer | None:
    """The tokenizer beside an exported graph.

    Raises:
        ExportError: it cannot be read.
    """
    settings = _read_settings(folder)
    model = _read_graph(folder / settings.graph, settings)
    return folder_tokenizer(folder, _vocab_size(model), settings.end_tokens)


def _write_component(
    folder: Path,
    settings: _Settings,
    model: Any,
    tokenizer: SourceTokenizer | None,
    quality_text: Path | None,
    stage: Path,
    report: Callable[[str], None],
) -> Component:
    layout, vocab_size = graphs.cache_layout(model), _vocab_size(model)
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
        original = OrtConcatEngine(
            work / "graph" / graphs.GRAPH, cache=layout, options=EngineOptions(), **size
        )
        reference = _write_reference(original, sample, work / "reference.f32")
        report("writing the target")
        _shape(model, appending)
        layout = graphs.cache_layout(model)
        graphs.save(model, stage / "target")
        report("measuring the target")
        make = OrtConcatEngine if appending else OrtEngine
        path = f"target/{graphs.GRAPH}"
        engine = make(stage / path, cache=layout, options=EngineOptions(), **size)
        parity = measuring.check_parity(engine, reference)
        min_width = measuring.measure_min_width(engine, sample.tokens)
        quality = measuring.measure_quality(engine, reference)
        engine.close()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Component(
        dialect="concat" if appending else "ort",
        architecture=settings.architecture,
        precision=_precision(model),
        parameters=_parameters(model),
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
            {
                file.name: file_sha256(file)
                for file in sorted(folder.glob("*.onnx*"))
                if file.name.startswith(settings.graph)
            },
            _TOOLS,
        ),
    )


# --- reading -----------------------------------------------------------------------------------


def _read_settings(folder: Path) -> _Settings:
    try:
        if (folder / _GENAI).is_file():
            return _genai_settings(json.loads((folder / _GENAI).read_bytes()))
        if (folder / "config.json").is_file():
            return _optimum_settings(json.loads((folder / "config.json").read_bytes()))
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{folder}'s configuration cannot be read: {error!r}") from error
    raise ExportError(
        f"{folder} has neither a {_GENAI} nor a config.json: give the folder that Optimum or "
        "onnxruntime-genai's builder wrote"
    )


def _genai_settings(config: dict[str, Any]) -> _Settings:
    model = config["model"]
    decoder = model["decoder"]
    names = tuple(
        (decoder["inputs"][f"past_{kind}_names"], decoder["outputs"][f"present_{kind}_names"])
        for kind in _KINDS
    )
    return _Settings(
        graph=decoder["filename"],
        architecture=model["type"],
        max_positions=int(model["context_length"]),
        end_tokens={_GENAI: model.get("eos_token_id")},
        head_size=int(decoder["head_size"]),
        cache_names=names,
        config=_GENAI,
    )


def _optimum_settings(config: dict[str, Any]) -> _Settings:
    positions = config.get("max_position_embeddings") or config["n_positions"]
    return _Settings(
        graph="model.onnx",
        architecture=config["model_type"],
        max_positions=int(positions),
        end_tokens={},
        head_size=None,
        cache_names=tuple((f"past_key_values.%d.{kind}", f"present.%d.{kind}") for kind in _KINDS),
        config="config.json",
    )


def _read_graph(path: Path, settings: _Settings) -> Any:
    """The graph, its cache under our names.

    Raises:
        ExportError: not there, or not a decoder with a cache.
    """
    if not path.is_file():
        raise ExportError(
            f"{path} is missing: export with a cache (task text-generation-with-past)"
        )
    try:
        model = ir.load(path)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ExportError(f"{path} cannot be read as ONNX: {error}") from error
    graph = model.graph
    for value in graph.initializers.values():
        tensor = value.const_value
        if isinstance(tensor, ir.ExternalTensor) and not Path(tensor.path).is_file():
            raise ExportError(f"{path.name} keeps weights in {tensor.location}, which is missing")
    values = {value.name: value for value in [*graph.inputs, *graph.outputs]}
    layers = 0
    while settings.cache_names[0][0] % layers in values:
        for (past, present), kind in zip(settings.cache_names, _KINDS, strict=True):
            cache = values[past % layers]
            if settings.head_size is not None:
                cache.shape = ir.Shape([*cache.shape[:3], settings.head_size])
            cache.name = f"past_key_values.{layers}.{kind}"
            values[present % layers].name = f"present.{layers}.{kind}"
        layers += 1
    if not layers or "input_ids" not in values or "logits" not in values:
        raise ExportError(
            f"{path.name} has inputs {', '.join(list(values)[:4])}, …: need input_ids, logits and "
            f"a cache named {settings.cache_names[0][0]}, as {settings.config} has it"
        )
    return model


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
    passes = [ScoresFrom()] if appending else [ExplicitLengths(), ScoresFrom(), FuseSilu()]
    if not appending:
        passes += [PackGateUp(), PadAttention()] if _precision(model) != "fp32" else [PackGateUp()]
    ir.passes.Sequential(*passes)(model)


def _precision(model: Any) -> Literal["fp32", "int4", "int8", "w8a8"]:
    bits = {
        node.attributes["bits"].value if "bits" in node.attributes else 4
        for node in model.graph
        if node.op_type == "MatMulNBits"
    }
    if bits:
        return "int4" if 4 in bits else "int8"
    integer = {"MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"}
    return "w8a8" if any(node.op_type in integer for node in model.graph) else "fp32"


def _vocab_size(model: Any) -> int:
    logits = next(value for value in model.graph.outputs if value.name == "logits")
    last = logits.shape[2] if logits.shape is not None else None
    if not isinstance(last, int):
        raise ExportError("the graph does not say how many logits it gives: fix logits' last size")
    return last


def _parameters(model: Any) -> int:
    """Elements of the weights; those packed into 4 bits count twice."""
    return sum(
        math.prod(value.shape) * (2 if value.dtype == ir.DataType.UINT8 else 1)
        for value in model.graph.initializers.values()
        if value.dtype in (ir.DataType.FLOAT, ir.DataType.UINT8, ir.DataType.INT8)
    )
