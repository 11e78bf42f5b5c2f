"""The whole test of an engine: the contract suite over it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from specplug import Bundle, Engine, EngineOptions
from specplug.engines import load
from specplug.engines.contract import EngineContract, Make


class TestReferenceEngine(EngineContract):
    @pytest.fixture
    def make(self) -> Make:
        bundle = Bundle.open(os.environ["SPECPLUG_BUNDLE"])

        def make(max_batch: int = 1) -> Engine:
            options = EngineOptions(engine="onnx-reference", max_batch=max_batch)
            return load(bundle.path, bundle.manifest.target, options)

        return make

    @contextmanager
    def failing(self, engine: Any, error: Exception) -> Iterator[None]:
        reference = engine._engine  # without what pads its calls
        evaluator, reference._evaluator = reference._evaluator, Broken(error)
        yield
        reference._evaluator = evaluator


class Broken:
    """An evaluator that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def run(self, *arguments: Any) -> Any:
        raise self._error
