"""The whole test of an engine: the contract suite over it."""

from __future__ import annotations

import os

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
