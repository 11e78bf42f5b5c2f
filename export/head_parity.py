"""What every export of a head measures: whether its graph is its PyTorch module."""

from __future__ import annotations

import numpy as np
import torch

from specplug.bundle import Parity
from specplug.engines.head_states import STATES
from specplug.export.block_head import BlockHead
from specplug.export.head import Cache, Head
from specplug.export.measuring import PARITY_TOLERANCE
from specplug.types import HIDDEN_STATES, Engine, Float32Array, Int64Array, ParityError, Step

_CONTEXT, _STEPS = 24, 6  # entries


def check_head(engine: Engine, head: Head) -> Parity:
    """Compare a head's fp32 graph with its module: context, steps on its own states, rollback.

    Args:
        engine: over the graph.
        head: the module.

    Raises:
        ParityError: a difference above :data:`PARITY_TOLERANCE` of the largest logit.
    """
    pair = _Pair(engine, head)
    random = np.random.default_rng(0)
    tokens = random.integers(0, head.shape.input_vocab_size, size=_CONTEXT + _STEPS)
    features = random.normal(size=(len(tokens), head.shape.features)).astype(np.float32)
    wrong = (tokens + 1) % head.shape.input_vocab_size
    half = _CONTEXT // 2
    prefill = pair.read(tokens[:_CONTEXT], features[:_CONTEXT], 0)
    verification = max(pair.step(tokens[at], at) for at in range(_CONTEXT, len(tokens)))
    pair.read(wrong[half:_CONTEXT], features[half:_CONTEXT], half)
    rollback = max(
        pair.read(tokens[half:_CONTEXT], features[half:_CONTEXT], half),
        *(pair.step(tokens[at], at) for at in range(_CONTEXT, len(tokens))),
    )
    return _checked(
        Parity(prefill=prefill, verification=verification, rollback=rollback), pair.scale
    )


def check_block_head(engine: Engine, head: BlockHead) -> Parity:
    """Compare a block head's fp32 graph with its module: a block after context, after more of it
    some tokens at a time, and after context that takes the place of other.

    Args:
        engine: over the graph.
        head: the module.

    Raises:
        ParityError: as of :func:`check_head`.
    """
    random = np.random.default_rng(0)
    shape, end, half = head.shape, _CONTEXT + _STEPS, _CONTEXT // 2
    features = random.normal(size=(end, shape.features)).astype(np.float32)
    block = np.full(shape.block, shape.mask_token)
    past: list[Cache] | None = None
    scale = 0.0

    def guessed(states: Float32Array, begin: int) -> float:
        """The largest difference after states from an entry on, the first tokens drawn."""
        nonlocal past, scale
        block[0] = random.integers(0, shape.input_vocab_size)
        tokens = np.concatenate([np.zeros(len(states), dtype=np.int64), block])
        step = Step(
            tokens=tokens[None],
            past=np.array([begin]),
            scores_from=len(states),
            states={STATES[0]: states[None]},
            block=shape.block,
        )
        found = engine.forward(step).logits()
        before = past and [(keys[:, :, :begin], values[:, :, :begin]) for keys, values in past]
        with torch.no_grad():
            logits, past = head(
                torch.from_numpy(states)[None],
                torch.from_numpy(block)[None],
                torch.arange(begin, begin + len(tokens))[None],
                past=before,
            )
        scale = max(scale, float(logits.abs().max()))
        return float(np.abs(found - logits.numpy()).max())

    def grown() -> float:
        return max(guessed(features[at : at + 2], at) for at in range(_CONTEXT, end, 2))

    prefill, verification = guessed(features[:_CONTEXT], 0), grown()
    guessed(features[:half], half)
    rollback = max(guessed(features[half:_CONTEXT], half), grown())
    return _checked(Parity(prefill=prefill, verification=verification, rollback=rollback), scale)


def _checked(parity: Parity, scale: float) -> Parity:
    for name, found in parity.model_dump().items():
        if not found <= PARITY_TOLERANCE * scale:  # also when it is NaN
            raise ParityError(
                f"the head's graph differs from its module by {found:.3g} in {name} (largest "
                f"logit {scale:.3g}): this head cannot be exported correctly yet"
            )
    return parity


class _Pair:
    """Graph and module, both fed the same."""

    scale = 0.0
    """The largest logit."""

    def __init__(self, engine: Engine, head: Head) -> None:
        self._engine, self._head = engine, head
        self._past: Cache | None = None
        self._state = torch.empty(0)

    def read(self, tokens: Int64Array, features: Float32Array, past: int) -> float:
        """Entries from the target's hidden states; the largest difference."""
        fused = self._head.fuse(torch.from_numpy(features[None]))
        return self._run(tokens, past, "features", features, fused)

    def step(self, token: int, past: int) -> float:
        """An entry from the head's own, the module's for both: random weights amplify bits."""
        state = self._state
        return self._run(np.array([token]), past, "fed_back", state[0].numpy(), state)

    @torch.no_grad()
    def _run(
        self,
        tokens: Int64Array,
        past: int,
        kind: str,
        states: Float32Array,
        hidden: torch.Tensor,
    ) -> float:
        step = Step(tokens=tokens[None], past=np.array([past]), states={kind: states[None]})
        scores = self._engine.forward(step)
        before = tuple(part[:, :, :past] for part in self._past) if self._past else None
        logits, own, self._past = self._head(
            torch.from_numpy(tokens)[None],
            hidden,
            torch.arange(past, past + len(tokens))[None],
            past=before,
        )
        self._state = own[:, -1:]
        size = float(logits.abs().max())
        self.scale = max(self.scale, size)
        # Of hidden states in proportion: they are another's input.
        difference = np.abs(scores.hidden(HIDDEN_STATES) - own.numpy()).max()
        return max(
            float(np.abs(scores.logits() - logits.numpy()).max()),
            float(difference / own.abs().max()) * size,
        )
