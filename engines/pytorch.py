"""PyTorch: a transformers model over a cache of slots, on any device; no graph needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from specplug.engines.host import check_step
from specplug.engines.sources import find_source
from specplug.engines.trees import fill_mask, positions
from specplug.types import (
    EngineError,
    EngineSpec,
    Float32Array,
    Int64Array,
    MissingExtraError,
    Step,
)
from specplug.widths import WIDEST, smallest_width

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.opening import EngineOptions

try:
    import torch
    import transformers
except ImportError as error:
    raise MissingExtraError(
        "the pytorch engine needs torch and transformers: pip install 'specplug[torch]'"
    ) from error

_FIRST_CAPACITY = 512  # cache entries; doubled when outgrown
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def open_component(folder: Path, component: Component, options: EngineOptions) -> PyTorchEngine:
    """The model that a component was exported from, in the component's precision.

    Raises:
        EngineError: the precision is one of quantized weights, or the source is not found.
    """
    from specplug.export.source import open_source

    if component.precision not in _DTYPES:
        raise EngineError(
            f"the pytorch engine computes in {', '.join(_DTYPES)}, and this component is in "
            f"{component.precision}: export it in one of those, or use its own engine"
        )
    source = open_source(find_source(component.provenance, options.sources))
    return PyTorchEngine(
        source.model(_DTYPES[component.precision], options.device or "cpu"),
        max_length=component.max_length,
        max_batch=options.max_batch,
        threads=options.threads,
    )


class PyTorchEngine:
    """A causal language model of transformers.

    Keys and values live in slots that a call names, so any shorter past, other pasts in a batch
    and trees are a matter of positions and masks. The width from which rows are the same is
    measured when the engine is made.

    Args:
        model: on its device, in evaluation mode.
        max_length: cache entries a row can hold; None: the model's positions.
        max_batch: rows a call can have.
        threads: PyTorch's, for the whole process; None: as they are.

    Raises:
        EngineError: rows depend on the width of the call at every width up to 16.
    """

    def __init__(
        self,
        model: Any,
        *,
        max_length: int | None = None,
        max_batch: int = 1,
        threads: int | None = None,
    ) -> None:
        config = model.config
        if threads is not None:
            torch.set_num_threads(threads)
        self._model = model
        self._device = next(model.parameters()).device
        self._windows = _windows(config)
        self._slots = _Slots(max_batch, _FIRST_CAPACITY)
        self.spec = EngineSpec(
            name="pytorch",
            vocab_size=int(config.vocab_size),
            max_length=max_length or int(config.max_position_embeddings),
            max_batch=max_batch,
            supports_tree=True,
            device=str(self._device),
        )
        self.spec = replace(self.spec, min_width=self._measure_width())

    def _measure_width(self) -> int:
        tokens = np.random.default_rng(0).integers(0, self.spec.vocab_size, size=3 * WIDEST)
        width = smallest_width(self, tokens[: self.spec.max_length])
        if width is None:
            raise EngineError(
                f"on {self._device} rows depend on the width of the call at every width up to "
                f"{WIDEST}: text would change under speculation"
            )
        return width

    def forward(self, step: Step) -> TorchScores:
        """Run tokens over the cache; see :class:`specplug.types.Engine`."""
        if self._model is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        width = step.tokens.shape[1]
        self._slots.aim(step, self._device)
        try:
            with torch.inference_mode():
                output = self._model(
                    input_ids=self._on_device(step.tokens),
                    position_ids=self._on_device(positions(step)),
                    attention_mask=self._masks(step),
                    past_key_values=self._slots,
                    use_cache=True,
                    logits_to_keep=width - step.scores_from,
                )
        except RuntimeError as error:
            raise EngineError(f"PyTorch failed running the model: {error}") from error
        return TorchScores(output.logits)

    def _masks(self, step: Step) -> Any:
        """One mask, or one for each kind of layer."""
        batch, width = step.tokens.shape
        made = {}
        for kind, window in self._windows.items():
            mask = np.empty((batch, 1, width, self._slots.end), dtype=np.float32)
            fill_mask(mask, step, window)
            made[kind] = self._on_device(mask).to(self._model.dtype)
        return made if len(made) > 1 else made.popitem()[1]

    def _on_device(self, array: np.ndarray[Any, Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move a tree's accepted path together; see :class:`specplug.types.TreeEngine`."""
        self._slots.keep(row, past, nodes)

    def close(self) -> None:
        """Release model and cache."""
        self._model = None
        self._slots = _Slots(0, 0)


class TorchScores:
    """Logits on the model's device; see :class:`specplug.types.Scores`."""

    def __init__(self, logits: torch.Tensor) -> None:
        self._logits = logits

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T']; ties go to the lowest id."""
        best: Int64Array = self._logits.argmax(dim=-1).cpu().numpy()
        return best

    def logits(self) -> Float32Array:
        """A copy on the host, or a view if they are there."""
        found: Float32Array = self._logits.float().cpu().numpy()
        return found

    def hidden(self, name: str) -> Float32Array:
        """No hidden states here."""
        raise EngineError(f"the pytorch engine has no hidden-state output {name!r}")


class _Slots(transformers.Cache):  # type: ignore[misc]
    """Keys and values [B, heads, capacity, size] a layer, written where a step says."""

    def __init__(self, rows: int, capacity: int) -> None:
        super().__init__(layers=[])
        self._rows_held, self._capacity = rows, capacity
        self._entries: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.end = 0
        """How many entries the attention of the running call looks at."""

    def aim(self, step: Step, device: torch.device) -> None:
        """Make room for a call, and have its entries written to their slots."""
        batch, width = step.tokens.shape
        self.end = int(step.past.max()) + width
        if self.end > self._capacity:
            self._grow()
        self._row = torch.arange(batch, device=device)[:, None]
        self._slot = torch.from_numpy(step.past[:, None] + np.arange(width)).to(device)

    def _grow(self) -> None:
        old = self._capacity
        while self._capacity < self.end:
            self._capacity *= 2
        for layer, pair in self._entries.items():
            self._entries[layer] = self._new(pair)
            for new, entries in zip(self._entries[layer], pair, strict=True):
                new[:, :, :old] = entries

    def _new(self, pair: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        # Zeros, not garbage: attention multiplies spare entries by 0, and 0 * NaN is NaN.
        first, second = (
            part.new_zeros(self._rows_held, part.shape[1], self._capacity, part.shape[3])
            for part in pair
        )
        return first, second

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        layer_idx: int,
        *_: Any,
        **__: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write a layer's new entries, and give all that its attention may see."""
        pair = key_states, value_states
        if layer_idx not in self._entries:
            self._entries[layer_idx] = self._new(pair)
        entries = self._entries[layer_idx]
        for held, new in zip(entries, pair, strict=True):
            held[self._row, :, self._slot] = new.transpose(1, 2)
        batch = len(self._row)
        return entries[0][:batch, :, : self.end], entries[1][:batch, :, : self.end]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions are always given: transformers' count of them is not used."""
        return 0

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move entries of a row together."""
        chosen = [past + node for node in nodes]
        for pair in self._entries.values():
            for entries in pair:
                entries[row, :, past : past + len(nodes)] = entries[row, :, chosen]


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
