"""ONNX Runtime: graphs of the ``ort`` dialect, bound once, past and present in one buffer."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime

from specplug.engines.host import HostScores, check_step
from specplug.types import EngineError, EngineSpec, Float32Array, Int64Array, Step

if TYPE_CHECKING:
    from specplug.bundle import CacheLayout
    from specplug.opening import EngineOptions

_FIRST_CAPACITY = 512  # cache entries; doubled when outgrown
_KEPT_BINDINGS = 64  # by batch, width and scored rows; prompts' odd widths come and go


@dataclass(slots=True)
class _Binding:
    """One shape of call: the session's binding and the arrays it reads and writes."""

    io: Any
    tokens: Int64Array  # [B, T]
    positions: Int64Array  # [B, T], for graphs with learned positions
    scores: HostScores  # over f32[B, T', V]


class OrtEngine:
    """An ``ort``-dialect graph and its cache.

    Args:
        graph: the ``.onnx`` file.
        cache: the layout of its cache.
        vocab_size: V.
        max_length: cache entries a row can hold.
        min_width: as measured at export.
        options: threads, providers, narrow calls.

    Raises:
        EngineError: the file cannot be loaded, or a provider is not in this build.
    """

    def __init__(
        self,
        graph: Path,
        *,
        cache: CacheLayout,
        vocab_size: int,
        max_length: int,
        min_width: int,
        options: EngineOptions,
    ) -> None:
        self.spec = EngineSpec(
            name="onnxruntime",
            vocab_size=vocab_size,
            max_length=max_length,
            max_batch=options.max_batch,
            min_width=1 if options.allow_narrow else min_width,
        )
        self._layout = cache
        self._session = open_session(graph, options)
        self._inputs = {value.name for value in self._session.get_inputs()}
        check_vocabulary(self._session, vocab_size)
        rows = options.max_batch
        self._seqlens_k = np.zeros(rows, dtype=np.int32)  # last valid entry, this call's included
        self._query_seqlens = np.zeros(rows, dtype=np.int32)  # this call's tokens
        self._total_length = np.zeros((), dtype=np.int32)
        self._scores_from = np.zeros(1, dtype=np.int64)
        self._attention_rows = np.array(1 if options.allow_narrow else 2, dtype=np.int64)
        self._cache = self._new_cache(min(_FIRST_CAPACITY, max_length) + cache.spare)
        self._bindings: dict[tuple[int, int, int], _Binding] = {}

    def forward(self, step: Step) -> HostScores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._session is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        batch, width = step.tokens.shape
        pasts = step.past.tolist()
        lengths = [width] * batch if step.lengths is None else step.lengths.tolist()
        ends = [past + length for past, length in zip(pasts, lengths, strict=True)]
        self._make_room(max(pasts) + width)
        binding = self._binding(batch, width, width - step.scores_from)
        binding.tokens[...] = step.tokens
        for row, past in enumerate(pasts):
            self._seqlens_k[row] = ends[row] - 1
            self._query_seqlens[row] = lengths[row]
            binding.positions[row] = range(past, past + width)
        self._total_length[...] = max(ends)
        self._scores_from[0] = step.scores_from
        try:
            self._session.run_with_iobinding(binding.io)
        except Exception as error:  # as in mapped_errors, without a context manager's cost per call
            raise EngineError(f"ONNX Runtime failed running the graph: {error}") from error
        return binding.scores

    def close(self) -> None:
        """Release session and cache."""
        self._bindings = {}
        self._session = None
        self._cache = np.empty(0, dtype=np.float32)

    # --- memory -------------------------------------------------------------------------------

    def _new_cache(self, capacity: int) -> np.ndarray[Any, Any]:
        layout = self._layout
        rows = self.spec.max_batch
        shape = (layout.layers, 2, rows, layout.heads, capacity, layout.head_size)
        try:
            # Zeros, not garbage: attention multiplies spare entries by 0, and 0 * NaN is NaN.
            return np.zeros(shape, dtype=layout.dtype)
        except MemoryError as error:
            raise EngineError(f"no memory for a cache of {capacity} tokens") from error

    def _make_room(self, length: int) -> None:
        spare = self._layout.spare
        capacity = self._cache.shape[4] - spare
        if length <= capacity:
            return
        while capacity < length:
            capacity *= 2
        old = self._cache
        self._cache = self._new_cache(min(capacity, self.spec.max_length) + spare)
        self._cache[..., : old.shape[4], :] = old
        self._bindings = {}

    def _binding(self, batch: int, width: int, scored: int) -> _Binding:
        found = self._bindings.get((batch, width, scored))
        if found is None:
            found = self._bind(batch, width, scored)
            if len(self._bindings) >= _KEPT_BINDINGS:
                self._bindings.pop(next(iter(self._bindings)))
            self._bindings[batch, width, scored] = found
        return found

    def _bind(self, batch: int, width: int, scored: int) -> _Binding:
        tokens = np.zeros((batch, width), dtype=np.int64)
        positions = np.zeros((batch, width), dtype=np.int64)
        logits: Float32Array = np.zeros((batch, scored, self.spec.vocab_size), dtype=np.float32)
        io = self._session.io_binding()

        def bind(name: str, array: np.ndarray[Any, Any], output: str | None = None) -> None:
            if name in self._inputs:
                io.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
            if output:
                io.bind_output(output, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

        with mapped_errors("binding the graph's inputs"):
            bind("input_ids", tokens)
            bind("position_ids", positions)
            bind("seqlens_k", self._seqlens_k[:batch])
            bind("query_seqlens", self._query_seqlens[:batch])
            bind("total_sequence_length", self._total_length)
            bind("scores_from", self._scores_from)
            bind("attention_rows", self._attention_rows)
            for layer, (keys, values) in enumerate(self._cache):
                bind(f"past_key_values.{layer}.key", keys[:batch], f"present.{layer}.key")
                bind(f"past_key_values.{layer}.value", values[:batch], f"present.{layer}.value")
            io.bind_output("logits", "cpu", 0, logits.dtype, logits.shape, logits.ctypes.data)
        return _Binding(io, tokens, positions, HostScores(logits))


# --- the backend -------------------------------------------------------------------------------

_pool_threads: int | None = None  # of ONNX Runtime's pool for the process, once we made one


def open_session(graph: Path | bytes, options: EngineOptions, *, pack_weights: bool = True) -> Any:
    """An ``onnxruntime.InferenceSession`` over a file or a serialized model.

    A target and its draft share one thread pool: with one each they would spin against one
    another. ONNX Runtime's only shared pool is the process's, and once it exists every session
    of the process has to use it, so an engine without a draft keeps a pool of its own.

    Args:
        graph: the file, with its data beside it, or the model itself.
        options: how it is to run.
        pack_weights: lay weights out for the kernels, which takes time and as much memory again.

    Raises:
        EngineError: a provider is not in this build, the graph cannot be loaded, or the
            process's pool has another number of threads.
    """
    available = onnxruntime.get_available_providers()
    for provider in options.providers:
        if provider not in available:
            raise EngineError(
                f"provider {provider!r} is not in this ONNX Runtime: have {available}"
            )
    threads = options.threads or physical_cores()
    if options.share_threads:
        _make_process_pool(threads)

    def open_with(per_session: bool) -> Any:
        session_options = onnxruntime.SessionOptions()
        session_options.use_per_session_threads = per_session
        session_options.intra_op_num_threads = threads if per_session else 0
        if not pack_weights:
            session_options.add_session_config_entry("session.disable_prepacking", "1")
        session_options.log_severity_level = 3  # errors; they reach the caller as exceptions
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            session_options,
            providers=list(options.providers),
            enable_fallback=0,  # a provider that fails is an error, not a slower run
        )

    with mapped_errors("loading a graph" if isinstance(graph, bytes) else f"loading {graph.name}"):
        if _pool_threads is not None:
            return open_with(per_session=False)
        try:
            return open_with(per_session=True)
        except RuntimeError as error:
            if "global thread pool" not in str(error):
                raise
            return open_with(per_session=False)  # the host program made the process's pool


def check_vocabulary(session: Any, vocab_size: int) -> None:
    """Refuse a graph whose logits are not those of ``vocab_size`` tokens, where it says so."""
    found = next(value.shape[-1] for value in session.get_outputs() if value.name == "logits")
    if isinstance(found, int) and found != vocab_size:
        raise EngineError(f"the graph has {found} logits a token, its description {vocab_size}")


def _make_process_pool(threads: int) -> None:
    global _pool_threads
    if _pool_threads is None:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool_threads = threads
    elif _pool_threads != threads:
        raise EngineError(
            f"threads {threads}: this process already runs its engines on {_pool_threads}, "
            "and all of them share one pool"
        )


def physical_cores() -> int:
    """Physical cores this process may run on; hardware threads of one core count once."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Every failure of the backend as an :class:`EngineError`."""
    try:
        yield
    except Exception as error:  # its exceptions share no base but Exception
        raise EngineError(f"ONNX Runtime failed {doing}: {error}") from error
