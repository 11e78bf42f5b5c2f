"""How far a system's scores are from the fp32 model's, on held-out text."""

from __future__ import annotations

from pathlib import Path

import numpy as np

_ROWS = 64  # compared at once; bounds memory at large vocabularies


def compare(reference: Path, rows: Path) -> dict[str, float]:
    """Mean KL(reference || system) in nats, and how often the likeliest token is the same.

    Args:
        reference: an .npy file of logits, f32[n, V].
        rows: the system's over the same tokens; their vocabulary may be padded further.
    """
    expected = np.load(reference, mmap_mode="r")
    found = np.load(rows, mmap_mode="r")
    vocab_size = min(expected.shape[1], found.shape[1])
    divergence, agreed = [], []
    for start in range(0, len(expected), _ROWS):
        wanted = _log_softmax(expected[start : start + _ROWS, :vocab_size])
        given = _log_softmax(found[start : start + _ROWS, :vocab_size])
        divergence += np.sum(np.exp(wanted) * (wanted - given), axis=1).tolist()
        agreed += (wanted.argmax(axis=1) == given.argmax(axis=1)).tolist()
    return {
        "tokens": len(expected),
        "mean_kl": float(np.mean(divergence)),
        "top1_agreement": float(np.mean(agreed)),
    }


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """In double precision, over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
