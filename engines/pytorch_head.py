"""PyTorch: a draft head over a cache of slots, on any device; no graph needed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import nn

from specplug.bundle import read_manifest
from specplug.engines.head_states import STATES, given_states
from specplug.engines.host import check_step
from specplug.engines.pytorch import TorchScores, torch_errors
from specplug.engines.sources import verified_source
from specplug.engines.torch_slots import FIRST_CAPACITY, Slots
from specplug.types import HIDDEN_STATES, EngineError, EngineSpec, Step

if TYPE_CHECKING:
    from specplug.bundle import Component
    from specplug.export.block_head import BlockHead
    from specplug.export.head import Cache, Head
    from specplug.export.source import Source
    from specplug.opening import EngineOptions


def open_head_component(
    folder: Path, component: Component, options: EngineOptions, dtype: torch.dtype
) -> HeadEngine:
    """The head that a component was exported from.

    Raises:
        EngineError: its source is not found; or that of its target, where the embedding is there.
    """
    from specplug.export.source import open_source
    from specplug.export.speculators import reopen_head

    target = read_manifest(folder).target
    assert target.hidden is not None  # the manifest's own check
    with ExitStack() as held:
        place = held.enter_context(verified_source(component.provenance, options.sources))

        def open_target() -> Source:
            found = verified_source(target.provenance, options.sources)
            return open_source(held.enter_context(found))

        head = reopen_head(place, target.hidden, open_target)
        head = head.to(device=options.device or "cpu", dtype=dtype)
    return open_head_module(head, max_batch=options.max_batch)


def open_head_module(head: Head | BlockHead, *, max_batch: int = 1) -> HeadEngine:
    """An engine over a head of either kind, on the device it is on."""
    from specplug.export.block_head import BlockHead

    if isinstance(head, BlockHead):
        return PyTorchBlockHeadEngine(head, max_batch=max_batch)
    return PyTorchHeadEngine(head, max_batch=max_batch)


class _Call(NamedTuple):
    """A step, on the device."""

    scores_from: int
    tokens: torch.Tensor
    states: list[torch.Tensor]
    positions: torch.Tensor
    mask: torch.Tensor | None
    past: list[Cache | None]
    """By layer."""


class HeadEngine(ABC):
    """A head, whose calls may be of any width: what it guesses changes no text.

    Args:
        head: the module, on its device.
        max_batch: rows a call can have.
    """

    def __init__(self, head: Head | BlockHead, *, max_batch: int = 1) -> None:
        weight = head.lm_head.weight
        self._head: nn.Module | None = head.eval()
        self._device, self._dtype = weight.device, weight.dtype
        self._sizes = {STATES[0]: head.shape.features}
        self._slots = Slots(max_batch, FIRST_CAPACITY)
        self.spec = EngineSpec(
            name="pytorch",
            vocab_size=head.shape.vocab_size,
            max_length=head.shape.max_length,
            max_batch=max_batch,
            input_vocab_size=head.shape.input_vocab_size,
            device=str(self._device),
        )

    def forward(self, step: Step) -> TorchScores:
        """Run entries over the cache; see :class:`specplug.types.Engine`."""
        if self._head is None:
            raise EngineError("the engine is closed: load it again")
        check_step(self.spec, step)
        given = given_states(step, self._sizes)
        with torch_errors("running the head"), torch.inference_mode():
            states = [
                torch.tensor(rows, device=self._device, dtype=self._dtype)
                for rows in given.values()
            ]
            batch, width = step.tokens.shape
            longest = int(step.past.max())
            rows = slice(step.first_row, step.first_row + batch)
            slots = torch.tensor(step.past[:, None] + np.arange(width), device=self._device)
            tokens = torch.tensor(step.tokens, device=self._device)
            past = [self._slots.before(layer, rows, longest) for layer in range(self._layers)]
            mask = self._mask(step, longest)
            call = _Call(step.scores_from, tokens, states, slots, mask, past)
            scores, held = self._run(self._head, call)
            self._slots.make_room(longest + width)
            self._slots.first_row, self._slots.slots = step.first_row, slots
            for layer, (keys, values) in enumerate(held):
                self._slots.update(keys[:, :, longest:], values[:, :, longest:], layer)
            return scores

    _layers = 1
    """Of the cache."""

    @abstractmethod
    def _run(self, head: Any, call: _Call) -> tuple[TorchScores, list[Cache]]:
        """Scores, and by layer all entries."""

    def _mask(self, step: Step, longest: int) -> torch.Tensor | None:
        """Hides what rows with a smaller past do not have; None: there is nothing to hide."""
        if (step.past == longest).all():
            return None
        width = step.tokens.shape[1]
        before = np.arange(longest) < step.past[:, None]
        seen = np.empty((len(before), 1, width, longest + width), dtype=bool)
        seen[..., :longest] = before[:, None, None]
        seen[..., longest:] = np.tri(width, dtype=bool)
        mask = np.where(seen, np.float32(0), np.float32(-np.inf))
        return torch.tensor(mask, device=self._device, dtype=self._dtype)

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
    def clear(self, row: int, start: int) -> None:
        """Make a row's entries new; see :class:`specplug.types.ClearableEngine`."""
        self._slots.clear(row, start)

    def close(self) -> None:
        """Release head and cache."""
        self._head = None
        self._slots = Slots(0, 0)


class PyTorchHeadEngine(HeadEngine):
    """A head that guesses a token at a call."""

    def __init__(self, head: Head, *, max_batch: int = 1) -> None:
        super().__init__(head, max_batch=max_batch)
        self._sizes[STATES[1]] = head.shape.hidden_size
        self.spec = replace(self.spec, hidden=(HIDDEN_STATES,))

    def _run(self, head: Any, call: _Call) -> tuple[TorchScores, list[Cache]]:
        features, hidden = call.states
        if features.shape[1]:
            hidden = torch.cat([head.fuse(features), hidden], dim=1)
        logits, own, held = head(
            call.tokens, hidden, call.positions, call.mask, call.past[0], call.scores_from
        )
        return TorchScores(logits, own), [held]


class PyTorchBlockHeadEngine(HeadEngine):
    """A head that guesses a block of tokens at a call."""

    def __init__(self, head: BlockHead, *, max_batch: int = 1) -> None:
        super().__init__(head, max_batch=max_batch)
        self._layers = head.shape.depth
        self.spec = replace(self.spec, supports_block=True)

    def _run(self, head: Any, call: _Call) -> tuple[TorchScores, list[Cache]]:
        (features,), tokens, mask = call.states, call.tokens, call.mask
        first = features.shape[1]
        if mask is not None:  # a block sees all of itself
            mask = mask[:, :, first:].clone()
            mask[..., mask.shape[-1] - tokens.shape[1] :] = 0
        logits, held = head(features, tokens[:, first:], call.positions, mask, call.past)
        unasked = logits.new_zeros(logits.shape[0], first, logits.shape[2])
        return TorchScores(torch.cat([unasked, logits], dim=1)[:, call.scores_from :]), held
