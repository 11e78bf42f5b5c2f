"""What passes between the loop, the engines and the drafters, and what can go wrong.

Notation used in every shape: B rows (sequences) in a call, T tokens of each row in that call
(the call's *width*), V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from specplug.sampler import Sampler

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
UInt64Array = NDArray[np.uint64]


class SpecplugError(Exception):
    """Base of every error that specplug raises on purpose."""


class BundleError(SpecplugError):
    """A bundle is missing, damaged, unsafe, or of a version this specplug cannot read."""


class EngineError(SpecplugError):
    """An inference backend failed, or was asked for something outside its :class:`EngineSpec`."""


class ContextLimitError(SpecplugError):
    """The prompt leaves no room for a new token in the engine's context."""


class ExportError(SpecplugError):
    """A source model cannot be turned into a bundle."""


class ParityError(ExportError):
    """An exported graph does not reproduce its source's logits."""


class MissingExtraError(SpecplugError):
    """An optional dependency is not installed; the message says what to install."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """What an engine can do; constant for its lifetime."""

    name: str
    """Registered name of the adapter, such as ``"onnxruntime"``."""
    vocab_size: int
    """V, the width of a row of scores."""
    max_length: int
    """Cache entries a row can hold."""
    max_batch: int = 1
    """Rows a call can have."""
    min_width: int = 1
    """The smallest width from which a token's scores do not depend on the width of its call.

    Calling narrower than this may change the text, so the loop never does: it pads.
    """
    supports_tree: bool = False
    """Whether ``Step.parents`` is understood."""
    device: str = "cpu"

    @property
    def context_limit(self) -> int:
        """Tokens a sequence can have when every call is padded to ``min_width``."""
        return self.max_length - (self.min_width - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of an engine.

    The call reads ``past[b]`` cache entries of row b and writes those of its own tokens at
    ``past[b] .. past[b] + T - 1``. There is no rollback: the next call names a smaller ``past``.
    """

    tokens: Int64Array  # [B, T]
    past: Int64Array  # [B]
    scores_from: int = 0
    """Scores are wanted for the tokens ``scores_from .. T - 1`` only."""
    parents: Int32Array | None = None  # [T], -1 for the root's parent; None: a chain
    lengths: Int32Array | None = None  # [B] tokens of each row that count; None: all T


class Scores(Protocol):
    """The result of a call, left where the engine put it; valid until the engine's next call."""

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T - scores_from]; ties go to the lowest id."""
        ...

    def logits(self) -> Float32Array:
        """Raw logits on the host, f32[B, T - scores_from, V]; a view, not to be written to."""
        ...

    def hidden(self, name: str) -> Float32Array:
        """A named hidden-state output, f32[B, T, D]; :class:`EngineError` if there is none."""
        ...


@runtime_checkable
class Engine(Protocol):
    """A model with its KV cache, behind one call."""

    @property
    def spec(self) -> EngineSpec:
        """What this engine can do."""
        ...

    def forward(self, step: Step) -> Scores:
        """Run the model over ``step``. Raises :class:`EngineError` on any failure."""
        ...

    def close(self) -> None:
        """Release the model and its cache; further calls are errors, a second close is not."""
        ...


@runtime_checkable
class TreeEngine(Engine, Protocol):
    """An engine with ``spec.supports_tree``: a call may be a tree of tokens (``Step.parents``)."""

    def keep(self, row: int, past: int, nodes: Sequence[int]) -> None:
        """Move the accepted path of a tree together, so that a chain may follow it.

        Args:
            row: of the batch.
            past: that the tree's call named; its node n has the cache entry ``past + n``.
            nodes: the accepted ones from the root on; their entries become ``past``,
                ``past + 1``, …
        """
        ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a drafter proposes for one round."""

    tokens: tuple[int, ...] = ()
    probabilities: Sequence[Float64Array] | None = None
    """What each token was drawn from, k times f64[V]; None: the tokens were not drawn."""
    parents: Int32Array | None = None  # [k], None: a chain

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the acceptance rule made of a proposal."""

    accepted: int
    """How many drafted tokens, from the first on, were accepted."""
    bonus: int
    """The target's own token after the accepted ones."""


class Drafter(Protocol):
    """Proposes continuations of a context. Wrong proposals cost time, never correctness."""

    name: str

    def propose(self, context: Int64Array, k: int) -> Proposal:
        """At most ``k`` tokens expected to follow ``context``, i64[n], k >= 1. May be empty."""
        ...

    def commit(self, tokens: Sequence[int]) -> None:
        """``tokens`` were appended to the context since the last proposal."""
        ...

    def reset(self, sampler: Sampler) -> None:
        """Forget the sequence; the next proposal is for a new one, with tokens chosen so."""
        ...

    def close(self) -> None:
        """Release what the drafter holds."""
        ...
