"""PyTorch: a transformers model over a cache of slots, on any device; no graph needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.engines.host import check_step
from specplug.engines.padded import PaddedEngine
from specplug.engines.sources import verified_source
from specplug.engines.trees import fill_mask, positions
from specplug.owned import closing_on_failure
from specplug.types import (
    HIDDEN_STATES,
    NO_TOKEN,
    EngineError,
    EngineSpec,
    Float32Array,
    Int64Array,
    MissingExtraError,
    Step,
)
from specplug.widths import WIDEST

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.engines.pytorch_head import HeadEngine
    from specplug.opening import EngineOptions

os.environ.setdefault("TQDM_DISABLE", "1")  # transformers' bars; before it imports tqdm

try:
    import torch

    from specplug.engines.torch_slots import FIRST_CAPACITY, Slots
except ImportError as error:
    raise MissingExtraError(
        "the pytorch engine needs torch and transformers: pip install 'specplug[torch]'"
    ) from error

_Outputs = tuple[torch.Tensor, torch.Tensor | None]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_component(
    folder: Path, component: Component, options: EngineOptions
) -> PaddedEngine | HeadEngine:
    """The model or head that a component was exported from, in the component's precision.

    Raises:
        EngineError: the precision is one of quantized weights, the device is not here, or the
            source is not found.
    """
    if component.precision not in _DTYPES:
        raise EngineError(
            f"the pytorch engine computes in {', '.join(_DTYPES)}, and this component is in "
            f"{component.precision}: export it in one of those, or use its own engine"
        )
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    _check_device(options.device)
    if component.head is not None:
        from specplug.engines.pytorch_head import open_head_component

        return open_head_component(folder, component, options, _DTYPES[component.precision])
    from specplug.export.source import open_source

    with verified_source(component.provenance, options.sources) as place:
        source = open_source(place)
        if source.parameters() != component.parameters:
            raise EngineError(
                f"this component has {component.parameters} of its source's {source.parameters()} "
                "weights, a draft of some of its layers: use its own engine"
            )
        model = source.model(_DTYPES[component.precision], options.device or "cpu")
    return open_model(
        model,
        max_length=component.max_length,
        max_batch=options.max_batch,
        hidden=component.hidden.layers if component.hidden else (),
    )


def _check_device(name: str | None) -> None:
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:  # the latter where PyTorch is without CUDA
        first, *_ = str(error).splitlines()
        raise EngineError(f"device {name!r}: PyTorch cannot use it here: {first}") from error


def open_model(
    model: Any,
    *,
    max_length: int | None = None,
    max_batch: int = 1,
    hidden: Sequence[int] = (),
) -> PaddedEngine:
    """An engine over any causal language model of transformers, on the device it is on.

    For its arguments see :class:`PyTorchEngine`.

    Raises:
        EngineError: the model has layers without a cache of keys and values, or rows depend on
            the width of the call, whatever it is padded to.
    """
    engine = PyTorchEngine(model, max_length=max_length, max_batch=max_batch, hidden=hidden)
    with closing_on_failure() as opened:
        return PaddedEngine(opened(engine))


class PyTorchEngine:
    """A causal language model of transformers.

    Keys and values live in slots that a call names, so any shorter past, other pasts in a batch
    and trees are a matter of positions and masks. Attention runs over the whole cache, so that its
    sums do not depend on the width of a call; products of matrices may, so wrap this in a
    :class:`specplug.engines.padded.PaddedEngine`, as :func:`open_model` does. On CUDA each shape
    of call becomes a CUDA graph.

    Args:
        model: on its device, in evaluation mode.
        max_length: cache entries a row can hold; None: the model's positions.
        max_batch: rows a call can have.
        hidden: layers whose inputs are given as hidden states, beside one another.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_length: int | None = None,
        max_batch: int = 1,
        hidden: Sequence[int] = (),
    ) -> None:
        config = model.config
        self._model = model
        self._hidden = tuple(hidden)
        self._device = next(model.parameters()).device
        self._windows = _windows(config)
        self._slots = Slots(max_batch, FIRST_CAPACITY)
        self._replayed = _Replayed(self._compute) if self._device.type == "cuda" else None
        most = int(config.max_position_embeddings)
        self.spec = EngineSpec(
            name="pytorch",
            vocab_size=int(config.vocab_size),
            max_length=min(max_length or most, most),
            max_batch=max_batch,
            supports_tree=True,
            exact_trees=model.dtype == torch.float32,
            hidden=(HIDDEN_STATES,) if hidden else (),
            device=str(self._device),
        )

    def forward(self, step: Step) -> TorchScores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._model is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        width = step.tokens.shape[1]
        compute = self._replayed or self._compute
        with torch_errors("running the model"), torch.inference_mode():
            self._slots.make_room(int(step.past.max()) + width)
            found = compute(self._inputs(step), width - step.scores_from, step.first_row)
        return TorchScores(*found)

    def _inputs(self, step: Step) -> list[torch.Tensor]:
        """What differs between calls of one shape: tokens, positions, slots, a mask a window."""
        batch, width = step.tokens.shape
        slots = step.past[:, None] + np.arange(width)
        masks = []
        for window in self._windows.values():
            mask = np.empty((batch, 1, width, self._slots.capacity), dtype=np.float32)
            fill_mask(mask, step, window)
            masks.append(torch.from_numpy(mask).to(self._device, self._model.dtype))
        host = (step.tokens, positions(step), slots)
        return [*(torch.from_numpy(array.copy()).to(self._device) for array in host), *masks]

    def _compute(self, inputs: list[torch.Tensor], kept: int, first_row: int) -> _Outputs:
        """Logits of the last ``kept`` tokens, [B, kept, V], and hidden states of all."""
        self._slots.first_row = first_row
        tokens, places, self._slots.slots, *masks = inputs
        kinds = dict(zip(self._windows, masks, strict=True))
        output = self._model(
            input_ids=tokens,
            position_ids=places,
            attention_mask=kinds if len(kinds) > 1 else masks[0],
            past_key_values=self._slots,
            use_cache=True,
            logits_to_keep=kept,
            output_hidden_states=bool(self._hidden),
        )
        if not self._hidden:
            return output.logits, None
        return output.logits, torch.cat([output.hidden_states[n] for n in self._hidden], dim=-1)

    @torch.inference_mode()
    def save(self, row: int, start: int, stop: int) -> torch.Tensor:
        """A copy of a row's entries; see :class:`specplug.types.BatchEngine`."""
        with torch_errors("copying cache entries"):
            return self._slots.save(row, start, stop)

    @torch.inference_mode()
    def load(self, row: int, start: int, entries: torch.Tensor) -> None:
        """Write entries into a row; see :class:`specplug.types.BatchEngine`."""
        with torch_errors("writing cache entries"):
            self._slots.load(row, start, entries)

    @torch.inference_mode()
    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        with torch_errors("moving cache entries"):
            self._slots.keep(row, past, nodes)

    @torch.inference_mode()
    def clear(self, row: int, start: int) -> None:
        """Make a row's entries new; see :class:`specplug.types.ClearableEngine`."""
        with torch_errors("clearing cache entries"):
            self._slots.clear(row, start)

    def close(self) -> None:
        """Release model and cache."""
        self._model = self._replayed = None
        self._slots = Slots(0, 0)


class _Replayed:
    """A computation on CUDA, captured as a graph for each shape of its inputs.

    The mask's shape holds the cache's capacity, so a graph over a cache that was outgrown is
    never run again.
    """

    def __init__(self, compute: Callable[[list[torch.Tensor], int, int], _Outputs]) -> None:
        self._compute = compute
        self._graphs: dict[Any, tuple[torch.cuda.CUDAGraph, list[torch.Tensor], _Outputs]] = {}

    def __call__(self, inputs: list[torch.Tensor], kept: int, first_row: int) -> _Outputs:
        """Copy the inputs to where the graph reads them, and run it."""
        shape = (*inputs[-1].shape, kept, first_row)
        if shape not in self._graphs:
            if inputs[0].shape[1] > WIDEST:  # prefill: rarely the same shape twice
                return self._compute(inputs, kept, first_row)
            self._graphs[shape] = self._capture(inputs, kept, first_row)
        graph, held, output = self._graphs[shape]
        for place, value in zip(held, inputs, strict=True):
            place.copy_(value)
        graph.replay()
        return output

    def _capture(
        self, inputs: list[torch.Tensor], kept: int, first_row: int
    ) -> tuple[torch.cuda.CUDAGraph, list[torch.Tensor], _Outputs]:
        held = [value.clone() for value in inputs]
        stream = torch.cuda.Stream(inputs[0].device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(inputs[0].device))
        with torch.cuda.stream(stream):  # libraries allocate their workspaces on a first run
            self._compute(held, kept, first_row)
        torch.cuda.current_stream(inputs[0].device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = self._compute(held, kept, first_row)
        return graph, held, output


class TorchScores:
    """Logits and hidden states on the model's device; see :class:`specplug.types.Scores`."""

    def __init__(self, logits: torch.Tensor, hidden: torch.Tensor | None = None) -> None:
        self._logits, self._hidden = logits, hidden
        self._best: Int64Array | None = None

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T']; see :class:`specplug.types.Scores`."""
        if self._best is not None:  # a batch asks for every row
            return self._best
        with torch_errors("computing scores"):  # a GPU's errors come late
            best = self._logits.argmax(dim=-1, keepdim=True)
            # The largest is NaN if any is, and infinite if any is or all are.
            finite = self._logits.gather(-1, best).isfinite()
            self._best = torch.where(finite, best, NO_TOKEN)[..., 0].cpu().numpy()
        return self._best

    def logits(self) -> Float32Array:
        """A copy on the host, or a view if they are there."""
        with torch_errors("computing scores"):
            found: Float32Array = self._logits.float().cpu().numpy()
        return found

    def hidden(self, name: str) -> Float32Array:
        """A copy on the host, or a view if they are there."""
        if self._hidden is None or name != HIDDEN_STATES:
            raise EngineError(f"the pytorch engine has no hidden-state output {name!r} here")
        with torch_errors("computing hidden states"):
            found: Float32Array = self._hidden.float().cpu().numpy()
        return found


@contextmanager
def torch_errors(doing: str) -> Iterator[None]:
    """Every failure of PyTorch, of memory too, as an :class:`EngineError`."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"PyTorch failed {doing}: {error}") from error


def _windows(config: Any) -> dict[str, int | None]:
    """How many tokens each kind of layer sees; None: all before it."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding_attention" if window else "full_attention"]
    unknown = sorted(set(kinds) - {"sliding_attention", "full_attention"})
    if unknown:
        raise EngineError(
            f"{config.model_type}'s layers of kind {', '.join(unknown)} keep no entries that "
            "could be taken back: it cannot be a target here"
        )
    return {kind: window if kind == "sliding_attention" else None for kind in sorted(set(kinds))}
