"""ONNX's reference evaluator as an engine of specplug, over graphs of the ``standard`` dialect."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx.reference import ReferenceEvaluator

from specplug.bundle import Component
from specplug.engines.host import HostScores, check_step
from specplug.engines.padded import PaddedEngine
from specplug.engines.trees import MASK, fill_mask, mask_window, positions
from specplug.opening import EngineOptions
from specplug.types import EngineError, EngineSpec, Step


def open_component(folder: Path, component: Component, options: EngineOptions) -> PaddedEngine:
    """An engine over a bundle's component; the entry point names this function."""
    if component.dialect != "standard":
        raise EngineError(
            f"onnx-reference runs the standard dialect, not {component.dialect}: export with "
            "--dialect standard"
        )
    return PaddedEngine(ReferenceEngine(folder, component, options.max_batch))


class ReferenceEngine:
    """A graph, and its cache: one array [B, heads, capacity, size] for each of its cache inputs."""

    def __init__(self, folder: Path, component: Component, max_batch: int) -> None:
        self._evaluator: Any = ReferenceEvaluator(str(folder / component.graph))
        self._names = [str(name) for name in self._evaluator.input_names]
        self.spec = EngineSpec(
            name="onnx-reference",
            vocab_size=component.vocab_size,
            max_length=component.max_length,
            max_batch=max_batch,
            supports_tree=True,
        )
        layout = component.cache
        shape = (max_batch, layout.heads, component.max_length, layout.head_size)
        self._cache = {
            name: np.zeros(shape, dtype=layout.dtype)
            for name in self._names
            if name.startswith("past_key_values.")
        }

    def forward(self, step: Step) -> HostScores:
        """Run tokens over the cache: fill the graph's inputs, keep the caches it gives back."""
        if self._evaluator is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        batch, width = step.tokens.shape
        rows = slice(step.first_row, step.first_row + batch)
        try:
            return self._run(step, rows, batch, width)
        except Exception as error:  # its operators raise whatever numpy does
            raise EngineError(f"the evaluator failed: {error}") from error

    def _run(self, step: Step, rows: slice, batch: int, width: int) -> HostScores:
        inputs: dict[str, Any] = {
            "input_ids": step.tokens,
            "position_ids": positions(step),
            "write_indices": step.past,
            "scores_from": np.array([step.scores_from]),
            **{name: cache[rows] for name, cache in self._cache.items()},
        }
        for name in self._names:
            if name.startswith(MASK):
                capacity = next(iter(self._cache.values())).shape[2]
                inputs[name] = np.empty((batch, 1, width, capacity), dtype=np.float32)
                fill_mask(inputs[name], step, mask_window(name))
        values = self._evaluator.run(None, {name: inputs[name] for name in self._names})
        outputs = dict(zip(self._evaluator.output_names, values, strict=True))
        for name, cache in self._cache.items():
            cache[rows] = outputs[name.replace("past_key_values", "present")]
        return HostScores(outputs["logits"])

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move the accepted path of a token tree together."""
        for cache in self._cache.values():
            entries = cache[row]
            entries[:, past : past + len(nodes)] = entries[:, [past + node for node in nodes]]

    def save(self, row: int, start: int, stop: int) -> Any:
        """A copy of a row's entries, [inputs, heads, stop - start, size]."""
        return np.stack([cache[row, :, start:stop] for cache in self._cache.values()])

    def load(self, row: int, start: int, entries: Any) -> None:
        """Write such a copy into a row."""
        for cache, values in zip(self._cache.values(), entries, strict=True):
            cache[row, :, start : start + values.shape[1]] = values

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries what they were at first: what is masked is still multiplied by 0,
        and 0 times NaN, of a call that went wrong, is NaN."""
        for cache in self._cache.values():
            cache[row, :, start:] = 0

    def close(self) -> None:
        """Release graph and cache."""
        self._evaluator = None
        self._cache = {}
