"""A head as a component of a bundle: graph, vocabulary, and the check against its module."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from specplug.bundle import Component, Dialect, Head, Parity, describe_file
from specplug.engines.ort import OrtEngine
from specplug.engines.ort_standard import OrtStandardEngine
from specplug.export import graphs
from specplug.export.head import Head as HeadModule
from specplug.export.head_graph import build_head
from specplug.export.keeping import Keep
from specplug.export.measuring import PARITY_TOLERANCE
from specplug.export.precision import Precision, apply_precision
from specplug.export.provenance import write_provenance
from specplug.export.speculators import HeadSource
from specplug.opening import EngineOptions
from specplug.types import HIDDEN_STATES, Engine, Float32Array, ParityError, Step

FOLDER, VOCABULARY = "draft", "vocabulary.i32"
_CONTEXT, _STEPS = 24, 6  # entries of the parity check


def write_head(
    source: HeadSource,
    precision: Precision,
    dialect: Dialect,
    keep: Keep,
    stage: Path,
    tools: tuple[str, ...],
) -> Component:
    """Write a head into a bundle that is being made.

    Args:
        source: the head.
        precision: of its graph.
        dialect: of its graph.
        keep: its layers that stay in fp32.
        stage: the bundle's folder.
        tools: packages whose versions the provenance names.

    Raises:
        ParityError: the graph does not reproduce the module.
    """
    head, shape = source.head, source.head.shape
    folder = stage / FOLDER
    graph = build_head(head, dialect)
    graphs.save(graph, folder)
    parity = check_head(_open(folder, graph, head, dialect), head)
    if precision != "fp32":
        for name in (graphs.GRAPH, graphs.DATA):
            (folder / name).unlink()
        folder.rmdir()
        graph = build_head(head, dialect)
        apply_precision(graph, precision, dialect=dialect, keep=keep)
        graphs.save(graph, folder)
    files = [f"{FOLDER}/{name}" for name in (graphs.GRAPH, graphs.DATA)]
    vocabulary = None
    if source.vocabulary is not None:
        vocabulary = f"{FOLDER}/{VOCABULARY}"
        source.vocabulary.astype("<i4").tofile(stage / vocabulary)
        files.append(vocabulary)
    return Component(
        dialect=dialect,
        architecture="eagle3",
        precision=precision,
        parameters=source.parameters(),
        graph=files[0],
        files=[describe_file(stage, file) for file in files],
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        min_width=1,
        head=Head(
            kind="eagle3",
            features=shape.features,
            hidden_size=shape.hidden_size,
            input_vocab_size=shape.input_vocab_size,
            vocabulary=vocabulary,
        ),
        cache=graphs.cache_layout(graph),
        parity=parity,
        quality=None,
        provenance=write_provenance(
            source.path.name, source.hashes(), tools, licence=source.licence
        ),
    )


def _open(folder: Path, graph: object, head: HeadModule, dialect: Dialect) -> Engine:
    shape = head.shape
    made = OrtStandardEngine if dialect == "standard" else OrtEngine
    return made(
        folder / graphs.GRAPH,
        cache=graphs.cache_layout(graph),
        vocab_size=shape.vocab_size,
        max_length=shape.max_length,
        min_width=1,
        input_vocab_size=shape.input_vocab_size,
        options=EngineOptions(),
    )


def check_head(engine: Engine, head: HeadModule) -> Parity:
    """Compare a head's fp32 graph with its module: context, steps on its own states, rollback.

    Args:
        engine: over the graph; closed.
        head: the module.

    Raises:
        ParityError: a difference above :data:`PARITY_TOLERANCE` of the largest logit.
    """
    random = np.random.default_rng(0)
    count = _CONTEXT + _STEPS
    tokens = random.integers(0, head.shape.input_vocab_size, size=count)
    features = random.normal(size=(count, head.shape.features)).astype(np.float32)
    scale = 0.0

    def steps(start: int, wrong: int = 0) -> float:
        """Context up to ``start``, then the head on its own; the largest difference."""
        nonlocal scale
        ids = (tokens + wrong) % head.shape.input_vocab_size
        found = _run(engine, ids[:start], 0, "features", features[:start])
        with torch.no_grad():
            wanted = head(
                torch.from_numpy(ids[:start])[None],
                head.fuse(torch.from_numpy(features[None, :start])),
                torch.arange(start)[None],
            )
        worst = 0.0
        for at in range(start, start + _STEPS + 1):
            logits, states, cache = wanted
            worst = max(worst, float(np.abs(found[0] - logits[0].numpy()).max()))
            scale = max(scale, float(logits.abs().max()))
            if at == start + _STEPS:
                break
            found = _run(engine, ids[at : at + 1], at, "fed_back", found[1][-1:])
            with torch.no_grad():
                wanted = head(
                    torch.from_numpy(ids[at : at + 1])[None],
                    states[:, -1:],
                    torch.tensor([[at]]),
                    past=cache,
                )
        return worst

    with torch.no_grad():
        whole = head(
            torch.from_numpy(tokens)[None],
            head.fuse(torch.from_numpy(features[None])),
            torch.arange(count)[None],
        )[0][0].numpy()
    prefill = float(np.abs(_run(engine, tokens, 0, "features", features)[0] - whole).max())
    verification = steps(_CONTEXT)
    steps(_CONTEXT // 2, wrong=1)
    again = _run(engine, tokens, 0, "features", features)[0]
    rollback = max(steps(_CONTEXT // 2), float(np.abs(again - whole).max()))
    engine.close()
    parity = Parity(prefill=prefill, verification=verification, rollback=rollback)
    for name, found in parity.model_dump().items():
        if not found <= PARITY_TOLERANCE * scale:
            raise ParityError(
                f"the head's graph differs from its module by {found:.3g} in {name} (largest "
                f"logit {scale:.3g}): this head cannot be exported correctly yet"
            )
    return parity


def _run(
    engine: Engine, tokens: np.ndarray, past: int, kind: str, states: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Copies of logits and hidden states, f32[T, V] and f32[T, D]."""
    step = Step(
        tokens=tokens[None].astype(np.int64),
        past=np.array([past], dtype=np.int64),
        states={kind: states[None]},
    )
    scores = engine.forward(step)
    return scores.logits()[0].copy(), scores.hidden(HIDDEN_STATES)[0].copy()
