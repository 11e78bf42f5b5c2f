"""A bundle against its source: exported anew, the target must come out the same."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from specplug import engines
from specplug.bundle import Bundle, Component, Manifest
from specplug.export.exporter import export_bundle
from specplug.export.from_onnx import export_onnx
from specplug.export.measuring import PARITY_TOLERANCE, PIECE
from specplug.export.quality_text import take_sample
from specplug.opening import EngineOptions
from specplug.types import Float32Array, Int64Array
from specplug.widths import rows_of

_STAGES = 7  # that an export reports

Outcome = tuple[bool, str, dict[str, Any]]
"""Whether the bundle is what its source gives, a summary, and details."""


def compare_with_source(
    bundle: Bundle, source: Path, report: Callable[[str, float], None]
) -> Outcome:
    """Export the target once more, which compares its graph with the source, and compare the two.

    With the tools of the bundle's own export every byte must be the same; else logits must be.

    Raises:
        ExportError: the source cannot be read.
        ParityError: its graph does not reproduce it.
    """
    stages = 0

    def staged(stage: str) -> None:
        nonlocal stages
        report("source", min(stages / _STAGES, 1))
        stages += 1

    with tempfile.TemporaryDirectory(prefix="specplug-verify-") as folder:
        again = Bundle(
            Path(folder) / "again",
            _export(bundle.manifest.target, source, Path(folder) / "again", staged),
        )
        return _compare(bundle, again, source)


def _export(
    target: Component, source: Path, output: Path, report: Callable[[str], None]
) -> Manifest:
    if "torch" not in target.provenance.tools:  # an existing graph was taken over
        return export_onnx(source, output, report=report)
    return export_bundle(
        source,
        output,
        precision=target.precision,
        dialect=target.dialect,
        keep_fp32=target.keep_fp32,
        continuations=target.continuations is not None,
        hidden=target.hidden.layers if target.hidden else (),
        report=report,
    )


def _compare(bundle: Bundle, again: Bundle, source: Path) -> Outcome:
    ours, fresh = bundle.manifest.target, again.manifest.target
    plans = {plan.path for plan in ours.plans}  # which the bundle's own TensorRT has to check
    changed = sorted({file.path for file in {*ours.files} ^ {*fresh.files}} - plans)
    tools = ours.provenance.tools
    same_tools = tools == {tool: version(tool) for tool in tools}
    details: dict[str, Any] = {
        "changed_files": changed,
        "same_tools": same_tools,
        "same_source": ours.provenance.sha256 == fresh.provenance.sha256,
        "parity": fresh.parity.model_dump(),
        "quality": fresh.quality.model_dump() if fresh.quality else None,
    }
    if not details["same_source"]:
        return (
            False,
            f"{source} is not what the bundle was exported from ({ours.provenance.source}): "
            "their SHA-256 differ",
            details,
        )
    worst = max(fresh.parity.model_dump().values())
    against = f"its fp32 graph differs from the source's logits by at most {worst:.1g}"
    if not changed:
        return True, f"exported anew, every byte is the same; {against}", details
    difference, scale = _largest_difference(bundle, again)
    details |= {"largest_difference": difference, "largest_logit": scale}
    differs = f"logits differ by up to {difference:.3g} (the largest is {scale:.3g})"
    if same_tools:
        return (
            False,
            f"{' and '.join(changed)} is not what the source gives with the same tools: {differs}",
            details,
        )
    if difference <= PARITY_TOLERANCE * scale:
        return True, f"exported anew by other versions of the tools, {differs}; {against}", details
    return (
        False,
        f"exported anew by other versions of the tools, {differs}: export the model again",
        details,
    )


def _largest_difference(bundle: Bundle, again: Bundle) -> tuple[float, float]:
    """Of the two targets' logits over the built-in text, and the largest logit."""
    tokenizer, component = bundle.tokenizer(), again.manifest.target
    encode = tokenizer.encode if tokenizer else None
    sample = take_sample(encode, component.vocab_size, component.max_length - 1, None)
    tokens = sample.tokens[: 2 * PIECE]
    ours, fresh = _logits(bundle, tokens), _logits(again, tokens)
    return float(np.abs(ours - fresh).max()), float(np.abs(fresh).max())


def _logits(bundle: Bundle, tokens: Int64Array) -> Float32Array:
    engine = engines.load(bundle.path, bundle.manifest.target, EngineOptions())
    try:
        pieces = [rows_of(engine, tokens[i : i + PIECE], i) for i in range(0, len(tokens), PIECE)]
    finally:
        engine.close()
    return np.concatenate(pieces)
