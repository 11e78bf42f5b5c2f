"""Drafts of some of the target's layers, made of a bundle's own graph and written into it.

Nothing of the source is needed: the draft's graph is the target's without the other layers, over
the target's file of weights, whatever these were rounded to.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir

from specplug.bundle import Bundle, ChosenLayers, Component, Manifest
from specplug.bundle_files import describe_file
from specplug.export.passes import SkipLayers
from specplug.export.passes.editing import weights_of
from specplug.export.provenance import write_provenance
from specplug.graph_check import read_references
from specplug.skip_search import Layers
from specplug.staging import replace_manifest
from specplug.types import ExportError
from specplug.unfinished import unfinished

_TOOLS = ("specplug", "onnx-ir", "onnxruntime")
_SCRATCH = "skipping-"


def check_bundle(bundle: Bundle, *, force: bool = False) -> None:
    """Refuse a bundle whose target cannot be drafted for by some of its layers.

    Args:
        bundle: opened.
        force: another draft may be replaced.

    Raises:
        ExportError: naming what is in the way.
    """
    target, draft = bundle.manifest.target, bundle.manifest.draft
    if target.dialect == "concat":
        raise ExportError(
            f"{bundle.path} has a graph that appends to its cache (dialect concat), which no draft "
            "can share: export the model from its source"
        )
    if target.engine != "onnxruntime":
        raise ExportError(
            f"{bundle.path} is for the engine {target.engine}: layers are skipped on onnxruntime "
            "alone; export without --engine"
        )
    if target.cache.layers < 2:
        raise ExportError(f"{bundle.path} has a model of one layer: there is none to skip")
    if draft is not None and draft.chosen is None and not force:
        raise ExportError(
            f"{bundle.path} has a draft already ({draft.architecture} in {draft.precision}), and a "
            "bundle has one: --force puts the new one in its place"
        )


@contextmanager
def scratch(bundle: Bundle, name: str) -> Iterator[Path]:
    """A place for a graph beside the target's weights, which the manifest knows nothing of.

    After a kill it may be left; the next one that is opened removes it.
    """
    folder = (bundle.path / bundle.manifest.target.graph).parent
    with unfinished(folder / f"{_SCRATCH}{name}", suffix=".onnx") as path:
        yield path


def make_draft(bundle: Bundle, layers: Sequence[int], graph: Path) -> Component:
    """Write the graph of a draft beside its target's, and describe the draft.

    Args:
        bundle: whose target it is made of.
        layers: the target's that are kept, ascending.
        graph: where to, in the folder of the target's graph.

    Raises:
        ExportError: the target's graph is no chain of layers.
    """
    target = bundle.manifest.target
    model = ir.load(bundle.path / target.graph)
    whole = _weights(model)
    SkipLayers(layers)(model)
    ir.save(model, graph)
    name = graph.relative_to(bundle.path).as_posix()
    places = {entry["location"] for entry in read_references(graph).external}
    shared = [
        file
        for file in target.files
        if (bundle.path / file.path).parent == graph.parent and Path(file.path).name in places
    ]
    source = target.provenance
    return target.model_copy(
        update={
            "parameters": target.parameters - (whole - _weights(model)),
            "graph": name,
            "files": [describe_file(bundle.path, name), *shared],
            "continuations": None,
            "layers": list(layers),
            "hidden": None,
            "cache": target.cache.model_copy(update={"layers": len(layers)}),
            "quality": None,
            "provenance": write_provenance(
                source.source,
                source.sha256,
                _TOOLS,
                revision=source.revision,
                licence=source.licence,
            ),
        }
    )


def write_draft(bundle: Bundle, layers: Layers, chosen: ChosenLayers) -> Manifest:
    """Write a draft into a bundle, in the place of the one that it has, if any.

    Until the manifest is replaced, in one step, the bundle is what it was.

    Args:
        bundle: opened.
        layers: the target's that the draft keeps, ascending.
        chosen: how they were chosen.

    Returns:
        The manifest that was written.
    """
    with scratch(bundle, "chosen") as graph:
        draft = make_draft(bundle, layers, graph)
        made = draft.files[0]
        final = graph.with_name(f"draft-{made.sha256[:12]}.onnx")
        graph.replace(final)
    path = final.relative_to(bundle.path).as_posix()
    files = [made.model_copy(update={"path": path}), *draft.files[1:]]
    draft = draft.model_copy(update={"graph": path, "files": files, "chosen": chosen})
    before = bundle.manifest
    manifest = Manifest.model_validate(
        before.model_copy(update={"draft": draft}).model_dump(), strict=True
    )
    replace_manifest(bundle.path, manifest)
    kept = {file.path for file in manifest.all_files()}
    for file in {file.path for file in before.all_files()} - kept:
        (bundle.path / file).unlink(missing_ok=True)
    for left in final.parent.glob("draft-*.onnx"):  # of a run that was killed right here
        if left.relative_to(bundle.path).as_posix() not in kept:
            left.unlink(missing_ok=True)
    return manifest


def _weights(model: Any) -> int:
    return sum(weights_of(node) for node in model.graph)
