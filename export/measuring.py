"""What every export measures: parity with the source, width independence, and quality."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specplug.bundle import CacheLayout, Dialect, Parity, Quality
from specplug.engines.ort_dialects import DIALECTS
from specplug.export.quality_text import Sample
from specplug.feeding import feed
from specplug.opening import EngineOptions
from specplug.types import (
    HIDDEN_STATES,
    Engine,
    Float32Array,
    Int64Array,
    ParityError,
    Step,
)
from specplug.widths import WIDEST, rows_of, smallest_width

PARITY_TOLERANCE = 1e-4
"""Of fp32 logits, relative to the largest."""

_PREFIX, _VERIFIED = 24, 16  # tokens of the parity check
_PATH = 5  # tokens of a path that is compared with a chain
PIECE = 128
"""Tokens of a quality call; bounds the memory of logits."""
_REFERENCE_PIECE = 640
"""Tokens of a call of the source, which reads all its weights anew each time."""


@dataclass(frozen=True, slots=True)
class Reference:
    """The source's logits over sample tokens, kept on disk: they can be larger than the model."""

    tokens: Int64Array  # [n]
    path: Path
    vocab_size: int
    text_sha256: str | None
    """Of the text that the tokens are of."""

    def logits(self, start: int, stop: int) -> Float32Array:
        """Rows ``start .. stop - 1``, f32[stop - start, V]."""
        row = 4 * self.vocab_size
        values = np.fromfile(
            self.path, dtype=np.float32, count=(stop - start) * self.vocab_size, offset=start * row
        )
        return values.reshape(stop - start, self.vocab_size)


def write_reference(model: Any, sample: Sample, path: Path) -> Reference:
    """Run the source's transformers model over a sample, in pieces, logits to ``path``."""
    tokens = sample.tokens
    vocab_size = int(model.config.vocab_size)
    cache = None
    with path.open("wb") as out, torch.no_grad():
        for start in range(0, len(tokens), _REFERENCE_PIECE):
            piece = torch.from_numpy(tokens[start : start + _REFERENCE_PIECE])[None]
            output = model(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            out.write(output.logits[0].numpy())
    return Reference(tokens, path, vocab_size, sample.text_sha256)


def open_graph(
    graph: Path,
    dialect: Dialect,
    cache: CacheLayout,
    vocab_size: int,
    max_length: int,
    max_batch: int = 1,
) -> Engine:
    """An engine over a graph that has no manifest yet."""
    return DIALECTS[dialect](
        graph,
        cache=cache,
        vocab_size=vocab_size,
        max_length=max_length,
        min_width=1,
        options=EngineOptions(max_batch=max_batch),
    )


def check_parity(
    engine: Engine, reference: Reference, tolerance: float = PARITY_TOLERANCE
) -> Parity:
    """Compare a graph with its source: prefill, several tokens at once, rollback.

    Args:
        engine: over the graph.
        reference: the source's logits.
        tolerance: the largest difference, relative to the largest logit.

    Raises:
        ParityError: a larger difference.
    """
    tokens = reference.tokens
    split = min(_PREFIX, len(tokens) // 2)
    end = min(split + _VERIFIED, len(tokens))
    expected = reference.logits(0, end)
    scale = float(np.abs(expected).max())

    if not np.isfinite(scale):
        raise ParityError(
            "the source's own logits are not finite: the checkpoint holds NaN or infinity, or its "
            "configuration makes some (norms' epsilon, the base of rotary embeddings)"
        )

    def difference(rows: Float32Array, wanted: Float32Array) -> float:
        return float(np.abs(rows - wanted).max())

    # All of the sample: sliding windows and rotary scaling show only far from the start.
    pieces = [(i, min(i + PIECE, len(tokens))) for i in range(0, len(tokens), PIECE)]
    prefill = float(
        np.max(
            [difference(rows_of(engine, tokens[i:j], i), reference.logits(i, j)) for i, j in pieces]
        )
    )
    verification = difference(rows_of(engine, tokens[split:end], split), expected[split:end])
    wrong = (tokens[split:end] + 1) % reference.vocab_size
    rows_of(engine, wrong, split // 2)
    again = rows_of(engine, tokens[split // 2 : end], split // 2)
    rollback = difference(again, expected[split // 2 : end])
    parity = Parity(prefill=prefill, verification=verification, rollback=rollback)
    for name, found in parity.model_dump().items():
        if not found <= tolerance * scale:  # also when it is NaN
            raise ParityError(
                f"the graph's logits differ from the source's by {found:.3g} in {name} "
                f"(largest logit {scale:.3g}, allowed {tolerance * scale:.3g}): "
                "this checkpoint cannot be exported correctly yet"
            )
    return parity


def check_hidden(engine: Engine, model: Any, reference: Reference, layers: Sequence[int]) -> None:
    """Compare an fp32 graph's hidden states with those of the source.

    Args:
        engine: over the graph.
        model: the source.
        reference: whose first tokens are run.
        layers: whose inputs the graph gives.

    Raises:
        ParityError: a difference above :data:`PARITY_TOLERANCE`.
    """
    tokens = reference.tokens[: _PREFIX + _VERIFIED]
    step = Step(
        tokens=tokens[None], past=np.array([0], dtype=np.int64), scores_from=len(tokens) - 1
    )
    found = engine.forward(step).hidden(HIDDEN_STATES)[0]
    with torch.no_grad():
        states = model(
            torch.from_numpy(tokens)[None], use_cache=False, output_hidden_states=True
        ).hidden_states
    wanted = np.concatenate([states[layer][0].numpy() for layer in layers], axis=-1)
    difference, scale = float(np.abs(found - wanted).max()), float(np.abs(wanted).max())
    if not difference <= PARITY_TOLERANCE * scale:
        raise ParityError(
            f"the graph's hidden states differ from the source's by {difference:.3g} (largest "
            f"{scale:.3g}): a head would read something else here; export without one"
        )


def measure_min_width(engine: Engine, tokens: Int64Array) -> int:
    """:func:`specplug.widths.smallest_width`, of a graph that is to be exported.

    Raises:
        ParityError: even calls of 15 and 16 tokens differ, so no width can be promised.
    """
    smallest = smallest_width(engine, tokens)
    if smallest is None:
        raise ParityError(
            "on this machine the graph's scores depend on the width of the call at every width "
            f"up to {WIDEST}: text would change under speculation; try --precision fp32"
        )
    return smallest


def measure_tree_difference(engine: Engine, tokens: Int64Array) -> float | None:
    """How far a tree's tokens are from the same in a chain, the most that a logit differs.

    Every token of the path has two siblings before it, whose cache entries then lie between.

    Returns:
        None where the engine takes no trees.
    """
    if not engine.spec.supports_tree:
        return None
    past = min(_PREFIX, len(tokens) // 2)
    path = tokens[past : past + _PATH]
    rows_of(engine, tokens[:past], 0)
    chain = rows_of(engine, path, past)
    nodes, parents, at = [], [], -1
    for token in path.tolist():
        nodes += [(token + 1) % engine.spec.vocab_size, (token + 2) % engine.spec.vocab_size, token]
        parents += [at] * 3
        at = len(nodes) - 1
    step = Step(
        tokens=np.array([nodes]),
        past=np.array([past]),
        parents=np.array(parents, dtype=np.int32),
    )
    tree = engine.forward(step).logits()[0, 2::3]
    return float(np.abs(tree[: len(chain)] - chain).max())


def measure_quality(engine: Engine, reference: Reference) -> Quality:
    """Top-1 agreement, mean KL divergence and perplexity against the source, over its tokens."""
    tokens = reference.tokens
    agreed, divergence, loss, source_loss = 0, 0.0, 0.0, 0.0
    last = len(tokens) - 1
    for start in range(0, len(tokens), PIECE):
        stop = min(start + PIECE, len(tokens))
        scores = feed(engine, tokens[start:stop].tolist(), past=start, scored=stop - start)
        graph = _log_softmax(scores.logits()[0][: stop - start])
        source = _log_softmax(reference.logits(start, stop))
        agreed += int((graph.argmax(axis=1) == source.argmax(axis=1)).sum())
        divergence += float((np.exp(source) * (source - graph)).sum())
        rows = np.arange(min(stop, last) - start)
        following = tokens[start + 1 : start + 1 + len(rows)]
        loss -= float(graph[rows, following].sum())
        source_loss -= float(source[rows, following].sum())
    return Quality(
        tokens=len(tokens),
        text_sha256=reference.text_sha256,
        top1_agreement=agreed / len(tokens),
        mean_kl=divergence / len(tokens),
        perplexity=float(np.exp(loss / last)),
        source_perplexity=float(np.exp(source_loss / last)),
    )


def _log_softmax(logits: Float32Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
