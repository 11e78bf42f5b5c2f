"""A graph in ONNX Runtime as it is, whatever the engines of this process did before."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from specplug.engines import ort_session


def plain_session(graph: Path) -> onnxruntime.InferenceSession:
    """A session; once the process has a pool of threads for all, none may have its own."""
    options = onnxruntime.SessionOptions()
    options.use_per_session_threads = ort_session._pool_threads is None
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
