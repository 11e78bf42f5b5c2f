"""ONNX Runtime over graphs that append: past in, past and present out, as Optimum exports them.

Such a graph returns a new, longer cache from every call, so a call costs a copy of the cache on
top of its work. The ``ort`` dialect does not have that cost; this adapter is for graphs that are
there already.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.engines.host import HostScores, check_step
from specplug.engines.ort_session import check_vocabulary, mapped_errors, off_cpu, open_session
from specplug.types import EngineError, EngineSpec, Float32Array, Step

if TYPE_CHECKING:
    from specplug.bundle import CacheLayout
    from specplug.opening import EngineOptions


class OrtConcatEngine:
    """A graph with inputs ``past_key_values.N.key|value`` and outputs ``present.N.key|value``.

    Besides ``input_ids`` it may take ``attention_mask``, ``position_ids`` and ``scores_from``.

    Args:
        graph: the ``.onnx`` file.
        cache: the layout of its cache; ``spare`` is not used.
        vocab_size: V.
        max_length: cache entries a row can hold.
        min_width: as measured at export.
        exact_trees: not used: appending graphs take no trees here.
        options: threads, providers, narrow calls.

    Raises:
        EngineError: the file cannot be loaded, has an input that is not known here, or a provider
            is not in this build.
    """

    def __init__(
        self,
        graph: Path,
        *,
        cache: CacheLayout,
        vocab_size: int,
        max_length: int,
        min_width: int,
        exact_trees: bool = False,
        options: EngineOptions,
    ) -> None:
        if options.max_batch != 1:
            raise EngineError(f"max_batch {options.max_batch}: appending graphs take one row here")
        if off_cpu(options):
            raise EngineError("appending graphs run on the CPU here: give no device or provider")
        self.spec = EngineSpec(
            name="onnxruntime",
            vocab_size=vocab_size,
            max_length=max_length,
            min_width=1 if options.allow_narrow else min_width,
        )
        self._session = open_session(graph, options)
        self._inputs = {value.name for value in self._session.get_inputs()}
        check_vocabulary(self._session, vocab_size)
        layers = range(cache.layers)
        self._past_names = [f"past_key_values.{i}.{kind}" for i in layers for kind in _KINDS]
        self._outputs = ["logits", *(f"present.{i}.{kind}" for i in layers for kind in _KINDS)]
        unknown = self._inputs - {*self._past_names, *_INPUTS}
        if unknown:
            raise EngineError(f"the graph's input {min(unknown)!r} is not one this engine feeds")
        empty = np.zeros((1, cache.heads, 0, cache.head_size), dtype=cache.dtype)
        self._cache: list[np.ndarray[Any, Any]] = [empty] * len(self._past_names)

    def forward(self, step: Step) -> HostScores:
        """Run one row's tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._session is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        width, past = step.tokens.shape[1], int(step.past[0])
        if past > self._cache[0].shape[2]:
            raise EngineError(f"past {past}, but the cache holds {self._cache[0].shape[2]} entries")
        with mapped_errors("running the graph"):
            return self._run(step, past, width)

    def _run(self, step: Step, past: int, width: int) -> HostScores:
        feeds = {
            "input_ids": step.tokens,
            "attention_mask": np.ones((1, past + width), dtype=np.int64),
            "position_ids": np.arange(past, past + width, dtype=np.int64)[None],
            "scores_from": np.array([step.scores_from], dtype=np.int64),
        }
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        for name, entries in zip(self._past_names, self._cache, strict=True):
            feeds[name] = np.ascontiguousarray(entries[:, :, :past])
        logits, *self._cache = self._session.run(self._outputs, feeds)
        if "scores_from" not in self._inputs:
            logits = logits[:, step.scores_from :]
        scores: Float32Array = logits.astype(np.float32, copy=False)
        return HostScores(scores)

    def close(self) -> None:
        """Release session and cache."""
        self._session = None
        self._cache = []


_KINDS = ("key", "value")
_INPUTS = ("input_ids", "attention_mask", "position_ids", "scores_from")
