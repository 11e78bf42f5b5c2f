"""TensorRT: a plan over caches that stay on the GPU; TensorRT 10, 11 and TensorRT-RTX."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.engines.cuda_memory import Device, open_device
from specplug.engines.host import best_tokens, check_step
from specplug.engines.padded import PaddedEngine
from specplug.engines.tensorrt_library import Library, find_library
from specplug.engines.trees import MASK, fill_mask, mask_window, positions
from specplug.owned import closing_on_failure
from specplug.types import (
    HIDDEN_STATES,
    NO_TOKEN,
    EngineError,
    EngineSpec,
    Float32Array,
    Int64Array,
    Step,
)
from specplug.widths import WIDEST

if TYPE_CHECKING:
    from specplug.bundle import Component, TensorRTPlan
    from specplug.opening import EngineOptions

Array = np.ndarray[Any, Any]
_ADDRESS_OF_NOTHING = 0


def open_component(folder: Path, component: Component, options: EngineOptions) -> PaddedEngine:
    """A component's plan for this machine's GPU and TensorRT.

    Raises:
        EngineError: no GPU, or no plan for it or for this version of TensorRT.
        MissingExtraError: no TensorRT is installed.
    """
    if component.head is not None:
        raise EngineError(
            "the tensorrt engine runs models, and this component is a head: use onnxruntime or "
            "pytorch for it"
        )
    if not component.plans:
        raise EngineError(
            "this component has no TensorRT plan: make one with specplug export --engine tensorrt"
        )
    library = find_library()
    try:
        device = open_device(options.device)
    except EngineError as error:
        raise EngineError(
            f"{error}; on a CPU the engine onnxruntime runs the same graph"
        ) from error
    with closing_on_failure() as opened:
        opened(device)
        plan = find_plan(component.plans, library, device.compute_capability)
        engine = TensorRTEngine(
            (folder / plan.path).read_bytes(),
            library=library,
            device=device,
            vocab_size=component.vocab_size,
            max_length=min(plan.capacity, component.max_length),
            max_batch=options.max_batch,
            exact_trees=component.exact_trees,
        )
        return PaddedEngine(engine)


def find_plan(
    plans: Sequence[TensorRTPlan], library: Library, compute_capability: str
) -> TensorRTPlan:
    """The plan that this TensorRT can run on this GPU.

    Raises:
        EngineError: there is none; it says which there are.
    """
    for plan in plans:
        wanted = (library.name, library.version, compute_capability)
        if (plan.library, plan.version, plan.compute_capability) == wanted:
            return plan
    have = ", ".join(f"{p.library} {p.version} on {p.compute_capability}" for p in plans)
    raise EngineError(
        f"the bundle's plans are for {have}; this is {library.name} {library.version} on "
        f"{compute_capability}: export again with --engine tensorrt"
    )


class TensorRTEngine:
    """A plan and its cache.

    Keys and values are one block [layers, 2, B, heads, capacity, size] on the GPU, which the plan
    reads and writes in place. Only tokens, positions and masks go there, and only what is asked
    for comes back: the best tokens, or the logits. Calls of up to 16 tokens become CUDA graphs.

    Args:
        plan: as built by :mod:`specplug.export.tensorrt`.
        library: the TensorRT that built it.
        device: the GPU; closed with the engine.
        vocab_size: V.
        max_length: cache entries a row can hold, no more than the plan's capacity.
        max_batch: rows a call can have, no more than the plan's.

    Raises:
        EngineError: TensorRT refuses the plan, or the plan has other inputs, a smaller batch or
            a smaller capacity.
    """

    def __init__(
        self,
        plan: bytes,
        *,
        library: Library,
        device: Device,
        vocab_size: int,
        max_length: int,
        max_batch: int = 1,
        exact_trees: bool = False,
    ) -> None:
        self._device = device
        self._runtime = library.api.Runtime(library.api.Logger(library.api.Logger.ERROR))
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise EngineError(f"{library.name} {library.version} cannot load the plan")
        self._layout = _Layout(self._engine, library.api)
        self._layout.check(vocab_size, max_length, max_batch)
        self.spec = EngineSpec(
            name="tensorrt",
            vocab_size=vocab_size,
            max_length=max_length,
            max_batch=max_batch,
            supports_tree=True,
            exact_trees=exact_trees,
            hidden=(HIDDEN_STATES,) if self._layout.hidden_size else (),
            device=device.name,
        )
        self._cache = device.allocate(self._layout.cache_bytes(max_batch))
        self._buffers: dict[str, tuple[int, int]] = {}  # name -> address, bytes
        self._scores_from = np.zeros(1, dtype=np.int64)  # a shape, which TensorRT wants on the host
        self._contexts: dict[int, Any] = {}
        self._graphs: dict[tuple[int, ...], Callable[[], None]] = {}

    # --- a call -------------------------------------------------------------------------------

    def forward(self, step: Step) -> TensorRTScores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._engine is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        with _mapped_errors("running the plan"):
            return self._run(step)

    def _run(self, step: Step) -> TensorRTScores:
        width, widest = step.tokens.shape[1], self._layout.widest
        if width <= widest:
            return self._call(step)
        if step.parents is not None:
            raise EngineError(f"a tree of {width} nodes: the plan takes {widest}")
        # A prompt that is longer than the prefill profile: in pieces, the last scored ones kept.
        parts: list[TensorRTScores] = []
        hidden: list[Float32Array] = []
        for start in range(0, width, widest):
            end = min(start + widest, width)
            first = max(step.scores_from - start, 0)
            scores = self._call(
                replace(
                    step,
                    tokens=np.ascontiguousarray(step.tokens[:, start:end]),
                    past=step.past + start,
                    scores_from=min(first, end - start - 1),
                )
            )
            if self._layout.hidden_size:
                hidden.append(scores.hidden(HIDDEN_STATES))
            if first < end - start:
                parts.append(scores if end == width and not parts else scores.on_host())
        made = parts[0] if len(parts) == 1 else TensorRTScores.joined(parts)
        return made.with_hidden(hidden) if hidden else made

    def _call(self, step: Step) -> TensorRTScores:
        batch, width = step.tokens.shape
        scored = width - step.scores_from
        best = self._room("next_token", batch * scored * 8)
        logits = self._room("logits", batch * scored * self.spec.vocab_size * 4)
        states = (batch, width, self._layout.hidden_size)
        hidden = self._room(HIDDEN_STATES, 4 * batch * width * states[2]) if states[2] else None
        self._upload(step)
        key = (step.first_row, batch, width, step.scores_from)
        if key in self._graphs:
            self._graphs[key]()
        else:
            run = self._prepared(*key)
            run()  # TensorRT allocates on a first run: only the second can be recorded
            if width <= WIDEST:
                self._graphs[key] = self._device.capture(run)
        scores = TensorRTScores(self._device, (batch, scored), self.spec.vocab_size, best, logits)
        return scores if hidden is None else scores.with_hidden_at(hidden, states)

    def _upload(self, step: Step) -> None:
        batch, width = step.tokens.shape
        arrays: dict[str, Array] = {
            "input_ids": step.tokens,
            "position_ids": positions(step),
            "write_indices": step.past,
        }
        for name in self._layout.masks:
            mask = np.empty((batch, 1, width, self._layout.capacity), dtype=np.float32)
            fill_mask(mask, step, mask_window(name))
            arrays[name] = mask
        for name, array in arrays.items():
            self._device.upload(self._room(name, array.nbytes), np.ascontiguousarray(array))

    def _prepared(
        self, first_row: int, batch: int, width: int, scores_from: int
    ) -> Callable[[], None]:
        """A context with shapes and addresses set, ready to be run."""
        context = self._context(self._layout.profile(width))
        self._scores_from[0] = scores_from
        for name, shape in self._layout.shapes(batch, width).items():
            if not context.set_input_shape(name, shape):
                raise EngineError(f"TensorRT refuses {name} of shape {shape}")
        addresses = {name: address for name, (address, _) in self._buffers.items()}
        addresses |= self._layout.cache_addresses(self._cache, self.spec.max_batch, first_row)
        addresses["scores_from"] = self._scores_from.ctypes.data
        for name in self._layout.names:
            if not context.set_tensor_address(name, addresses[name]):
                raise EngineError(f"TensorRT refuses the address of {name}")

        def run() -> None:
            if not context.execute_async_v3(self._device.stream):
                raise EngineError(f"TensorRT failed running {batch} rows of {width} tokens")

        return run

    def _context(self, profile: int) -> Any:
        """That of a profile. One each, since a graph holds on to its context's memory."""
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None:
                raise EngineError("TensorRT has no memory for a context on this GPU")
            if not context.set_optimization_profile_async(profile, self._device.stream):
                raise EngineError(f"TensorRT refuses its profile {profile}")
            self._contexts[profile] = context
        return self._contexts[profile]

    # --- memory -------------------------------------------------------------------------------

    def _room(self, name: str, size: int) -> int:
        """Address of a buffer of at least so many bytes."""
        address, held = self._buffers.get(name, (_ADDRESS_OF_NOTHING, 0))
        if held >= size:
            return address
        if held:
            self._graphs.clear()  # they know the old address
            del self._buffers[name]  # first, for there may be no memory for a larger one
            self._device.free(address)
        self._buffers[name] = self._device.allocate(size), size
        return self._buffers[name][0]

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        layout, batch = self._layout, self.spec.max_batch
        entry = layout.head_size * layout.itemsize
        head = layout.capacity * entry
        block = batch * layout.heads * head  # keys, or values, of a layer
        if batch == 1:  # heads of all layers lie equally far apart
            starts, pitch, rows = [0], head, 2 * layout.layers * layout.heads
        else:
            first = row * layout.heads
            starts = [(first + number) * head for number in range(layout.heads)]
            pitch, rows = block, 2 * layout.layers
        for to, node in enumerate(nodes):
            if to == node:
                continue
            for start in starts:
                base = self._cache + start + past * entry
                self._device.move(
                    base + to * entry, base + node * entry, width=entry, rows=rows, pitch=pitch
                )

    def save(self, row: int, start: int, stop: int) -> Array:
        """A copy of a row's entries on the host; see :class:`specplug.types.BatchEngine`."""
        layout = self._layout
        shape = (2 * layout.layers * layout.heads, stop - start, layout.head_size * layout.itemsize)
        saved = np.empty(shape, dtype=np.uint8)
        for part, address in zip(saved, self._heads(row, start), strict=True):
            self._device.download(part, address)
        return saved

    def load(self, row: int, start: int, entries: Array) -> None:
        """Write entries into a row; see :class:`specplug.types.BatchEngine`."""
        for part, address in zip(entries, self._heads(row, start), strict=True):
            self._device.upload(address, part)

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries new; see :class:`specplug.types.ClearableEngine`."""
        layout = self._layout
        size = (layout.capacity - start) * layout.head_size * layout.itemsize
        nothing = np.zeros(size, dtype=np.uint8)
        for address in self._heads(row, start):
            self._device.upload(address, nothing)

    def _heads(self, row: int, start: int) -> Iterator[int]:
        """Where the entries from ``start`` on of each of a row's heads are, layer by layer."""
        layout = self._layout
        entry = layout.head_size * layout.itemsize
        places = layout.cache_addresses(self._cache, self.spec.max_batch, row)
        for base in dict.fromkeys(places.values()):
            for head in range(layout.heads):
                yield base + (head * layout.capacity + start) * entry

    def close(self) -> None:
        """Release contexts, plan, cache and stream."""
        if self._engine is None:
            return
        self._graphs.clear()
        self._contexts.clear()
        self._engine = self._runtime = None
        self._device.close()


@contextmanager
def _mapped_errors(doing: str) -> Iterator[None]:
    """Every failure of TensorRT's Python, of memory too, as an :class:`EngineError`."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"TensorRT failed {doing}: {error}") from error


class TensorRTScores:
    """Best tokens and logits on the GPU until asked for; see :class:`specplug.types.Scores`."""

    def __init__(
        self, device: Device, shape: tuple[int, int], vocab_size: int, best: int, logits: int
    ) -> None:
        self._device, self._shape, self._vocab_size = device, shape, vocab_size
        self._addresses = best, logits
        self._best: Int64Array | None = None
        self._logits: Float32Array | None = None
        self._hidden: Float32Array | tuple[int, tuple[int, int, int]] | None = None

    def with_hidden_at(self, address: int, shape: tuple[int, int, int]) -> TensorRTScores:
        """Itself, with hidden states on the GPU."""
        self._hidden = address, shape
        return self

    def with_hidden(self, pieces: Sequence[Float32Array]) -> TensorRTScores:
        """Itself, with those of the pieces of a call."""
        self._hidden = np.concatenate(pieces, axis=1)
        return self

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T']; see :class:`specplug.types.Scores`.

        The plan looks for the best ones on the GPU, and only their own scores are looked at here:
        a single NaN that its comparisons pass over is not found.
        """
        if self._best is None and self._logits is not None:
            self._best = best_tokens(self._logits)
        if self._best is None:
            best = np.empty(self._shape, dtype=np.int64)
            self._device.download(best, self._addresses[0])
            flat = best.ravel()
            for position, token in enumerate(flat.tolist()):
                if not self._is_number(position, token):
                    flat[position] = NO_TOKEN
            self._best = best
        return self._best

    def _is_number(self, position: int, token: int) -> bool:
        """Whether a token's score is finite."""
        if not 0 <= token < self._vocab_size:
            return False
        score = np.empty(1, dtype=np.float32)
        entry = position * self._vocab_size + token
        self._device.download(score, self._addresses[1] + entry * score.itemsize)
        return bool(np.isfinite(score[0]))

    def logits(self) -> Float32Array:
        """A copy on the host, f32[B, T', V]."""
        if self._logits is None:
            self._logits = np.empty((*self._shape, self._vocab_size), dtype=np.float32)
            self._device.download(self._logits, self._addresses[1])
        return self._logits

    def hidden(self, name: str) -> Float32Array:
        """A copy on the host, f32[B, T, D]."""
        if self._hidden is None or name != HIDDEN_STATES:
            raise EngineError(f"this plan has no hidden-state output {name!r}")
        if isinstance(self._hidden, tuple):
            address, shape = self._hidden
            self._hidden = np.empty(shape, dtype=np.float32)
            self._device.download(self._hidden, address)
        return self._hidden

    def on_host(self) -> TensorRTScores:
        """Itself, independent of the engine's next call."""
        self.logits(), self.argmax()
        return self

    @classmethod
    def joined(cls, parts: Sequence[TensorRTScores]) -> TensorRTScores:
        """Scores of the pieces of one call."""
        first = parts[0]
        best = np.concatenate([part.argmax() for part in parts], axis=1)
        made = cls(first._device, best.shape, first._vocab_size, *first._addresses)
        made._best = best
        made._logits = np.concatenate([part.logits() for part in parts], axis=1)
        return made


class _Layout:
    """What a plan's inputs and outputs are, read from the plan itself."""

    def __init__(self, engine: Any, api: Any) -> None:
        self._engine = engine
        self.names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [n for n in self.names if engine.get_tensor_mode(n) == api.TensorIOMode.INPUT]
        self.masks = [name for name in inputs if name.startswith(MASK)]
        self._caches = [name for name in inputs if name.startswith("past_key_values.")]
        known = {"input_ids", "position_ids", "write_indices", "scores_from", *self.masks}
        if unknown := sorted({*inputs} - known - {*self._caches}):
            raise EngineError(f"the plan has inputs that specplug does not know: {unknown}")
        if missing := sorted({"input_ids", "scores_from", *self.masks[:1]} - {*inputs}):
            raise EngineError(f"the plan lacks the inputs {missing}")
        self._inputs = inputs
        self.layers = len(self._caches) // 2
        _, self.heads, self.capacity, self.head_size = engine.get_tensor_shape(self._caches[0])
        self.itemsize = int(
            np.dtype(_numpy(api, engine.get_tensor_dtype(self._caches[0]))).itemsize
        )
        self.vocab_size = engine.get_tensor_shape("logits")[2]
        self.hidden_size = 0
        if HIDDEN_STATES in self.names:
            self.hidden_size = engine.get_tensor_shape(HIDDEN_STATES)[2]
        # What each profile takes at most: batch, width.
        self._most: list[tuple[int, int]] = [
            tuple(engine.get_tensor_profile_shape("input_ids", number)[2])
            for number in range(engine.num_optimization_profiles)
        ]
        self.widest = max(width for _, width in self._most)

    def check(self, vocab_size: int, max_length: int, max_batch: int) -> None:
        """Refuse a use that the plan was not built for."""
        if self.vocab_size != vocab_size:
            raise EngineError(f"the plan has {self.vocab_size} logits a token, not {vocab_size}")
        batch = min(most for most, _ in self._most)
        if max_batch > batch:
            raise EngineError(f"max_batch {max_batch}: the plan takes {batch}; export it for more")
        if max_length > self.capacity:
            raise EngineError(f"max_length {max_length}: the plan holds {self.capacity} entries")

    def profile(self, width: int) -> int:
        """The narrowest profile that takes calls of this width."""
        fitting = [(most, number) for number, (_, most) in enumerate(self._most) if width <= most]
        _, number = min(fitting)
        return number

    def shapes(self, batch: int, width: int) -> dict[str, tuple[int, ...]]:
        """Of every input but ``scores_from``, whose shape never changes."""
        made: dict[str, tuple[int, ...]] = {}
        for name in self._inputs:
            if name == "scores_from":
                continue
            sizes = [batch, width]
            shape = self._engine.get_tensor_shape(name)
            made[name] = tuple(size if size >= 0 else sizes.pop(0) for size in shape)
        return made

    def _bytes(self, batch: int) -> int:
        """Of one layer's keys, or values."""
        size: int = batch * self.heads * self.capacity * self.head_size * self.itemsize
        return size

    def cache_bytes(self, batch: int) -> int:
        """Of the whole cache."""
        return 2 * self.layers * self._bytes(batch)

    def cache_addresses(self, start: int, batch: int, first_row: int = 0) -> dict[str, int]:
        """Where each layer's keys and values are; outputs lie where inputs do."""
        start += self._bytes(first_row)
        made = {}
        for layer in range(self.layers):
            for number, kind in enumerate(("key", "value")):
                address = start + (2 * layer + number) * self._bytes(batch)
                made[f"past_key_values.{layer}.{kind}"] = address
                made[f"present.{layer}.{kind}"] = address
        return made


def _numpy(api: Any, dtype: Any) -> Any:
    return np.float32 if dtype == api.DataType.FLOAT else np.float16  # bf16 is as long
