"""What passes between the loop, the engines and the drafters, and what can go wrong.

Notation used in every shape: B rows (sequences) in a call, T tokens of each row in that call
(the call's *width*), V the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from inspect import get_annotations
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from specplug.arguments import check_ranges, check_types

if TYPE_CHECKING:
    from specplug.budget import Budget
    from specplug.expected_text import ExpectedText
    from specplug.sampler import Sampler

Int64Array = NDArray[np.int64]
Int32Array = NDArray[np.int32]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
UInt64Array = NDArray[np.uint64]


NO_TOKEN = -1
"""What :meth:`Scores.argmax` gives for a position whose scores are not numbers."""

HIDDEN_STATES = "hidden_states"
"""The output that :meth:`Scores.hidden` gives of targets with a head, and of heads."""


class SpecplugError(Exception):
    """Base of every error that specplug raises on purpose."""


class BundleError(SpecplugError):
    """A bundle is missing, damaged, unsafe, or of a version this specplug cannot read."""


class EngineError(SpecplugError):
    """An inference backend failed, or was asked for something outside its :class:`EngineSpec`."""


class DecoderBusyError(SpecplugError):
    """A second generation was begun on an engine, or a drafter, that has one cache for one."""


class DrafterError(SpecplugError):
    """A drafter failed, or its proposal is not what :meth:`Drafter.propose` asks for."""


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
    """Rows of the cache; a call has some of them, next to one another."""
    min_width: int = 1
    """The smallest width from which a token's scores do not depend on the width of its call.

    Calling narrower than this may change the text, so the loop never does: it pads.
    """
    supports_tree: bool = False
    """Whether ``Step.parents`` is understood."""
    exact_trees: bool = False
    """Whether a token's scores in a tree are those in a chain, but for the order of sums."""
    supports_block: bool = False
    """Whether ``Step.block`` is understood."""
    shares_cache: bool = False
    """Whether its cache is another engine's, which has written the context there already."""
    hidden: tuple[str, ...] = ()
    """Names that :meth:`Scores.hidden` takes."""
    input_vocab_size: int | None = None
    """Token ids that a call may have, where it scores others than it reads; None: V."""
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_types(self)
        check_ranges(
            self,
            (
                ("vocab_size", "at least 1", self.vocab_size >= 1),
                ("max_length", "at least 1", self.max_length >= 1),
                ("max_batch", "at least 1", self.max_batch >= 1),
                ("min_width", "in [1, max_length]", 1 <= self.min_width <= self.max_length),
            ),
        )

    @property
    def context_limit(self) -> int:
        """Tokens a sequence can have when every call is padded to ``min_width``."""
        return self.max_length - (self.min_width - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call of an engine.

    The call reads ``past[b]`` cache entries of row b and writes those of its own tokens at
    ``past[b] .. past[b] + T - 1``. There is no rollback: the next call names a smaller ``past``.
    A call that fails may have written anything there, and nothing elsewhere.
    """

    tokens: Int64Array  # [B, T]
    past: Int64Array  # [B]
    first_row: int = 0
    """The call's rows are the cache's rows ``first_row .. first_row + B - 1``."""
    scores_from: int = 0
    """Scores are wanted for the tokens ``scores_from .. T - 1`` only."""
    parents: Int32Array | None = None  # [T], -1 for the root's parent; None: a chain
    lengths: Int32Array | None = None  # [B] tokens of each row that count; None: all T
    block: int = 0
    """The last tokens of every row that see one another, in both directions."""
    states: Mapping[str, Float32Array] = field(default_factory=dict)
    """What a draft head reads beside the tokens, by the name of its input, f32[B, n, D]: together
    they have T - block rows, those of an earlier input belonging to the earlier tokens."""


class Scores(Protocol):
    """The result of a call, left where the engine put it; valid until the engine's next call."""

    def argmax(self) -> Int64Array:
        """Best token of each position, i64[B, T - scores_from]; ties go to the lowest id.

        :data:`NO_TOKEN` where the scores are not numbers: one of them is NaN or infinity, or all
        are minus infinity. (Looking at the largest is enough: it is NaN if any is.)
        """
        ...

    def logits(self) -> Float32Array:
        """Raw logits on the host, f32[B, T - scores_from, V]; a view, not to be written to."""
        ...

    def hidden(self, name: str) -> Float32Array:
        """A named hidden-state output of all tokens, f32[B, T, D], whatever scores are wanted.

        Raises:
            EngineError: there is none of this name.
        """
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


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine with ``spec.max_batch > 1``: what a row holds may become another row's."""

    def save(self, row: int, start: int, stop: int) -> Any:
        """A copy of a row's cache entries ``start .. stop - 1``, with an ``nbytes`` in bytes."""
        ...

    def load(self, row: int, start: int, entries: Any) -> None:
        """Write entries that :meth:`save` gave, of this engine, into a row from ``start`` on."""
        ...


@runtime_checkable
class ClearableEngine(Engine, Protocol):
    """An engine whose calls read cache entries beyond ``past``, if only to multiply them by 0.

    NaN among them makes all scores NaN: after a call that failed, or gave scores that are not
    numbers, the loop has its rows cleared before another sequence is there.
    """

    def clear(self, row: int, start: int) -> None:
        """Make a row's entries from ``start`` on what they were when the engine was opened."""
        ...


@dataclass(frozen=True, slots=True)
class Proposal:
    """What a drafter proposes for one round: a tree of tokens, of which a chain is one."""

    tokens: tuple[int, ...] = ()
    probabilities: Sequence[Float64Array | None] | None = None
    """What each token was drawn from, k times f64[V], earlier siblings left out; None: the token,
    or none of them, was drawn."""
    parents: tuple[int, ...] | None = None
    """Of each token the one before it, of a smaller index; -1: the last committed token. None: a
    chain. Siblings differ."""
    reaches: tuple[float, ...] | None = None
    """The chance of each token that it is accepted, as the drafter sees it; None: it says nothing.
    """

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def branches(self) -> bool:
        """Whether it is more than a chain."""
        return self.parents is not None and self.parents != tuple(range(-1, len(self) - 1))

    def shortened(self, tokens: int) -> Proposal:
        """The first so many tokens of it."""
        cut = slice(tokens)
        return (
            self
            if tokens >= len(self)
            else Proposal(
                self.tokens[cut],
                self.probabilities[cut] if self.probabilities is not None else None,
                self.parents[cut] if self.parents is not None else None,
                self.reaches[cut] if self.reaches is not None else None,
            )
        )

    def children(self) -> dict[int, list[int]]:
        """The tokens after each token, in order; those after the last committed one under -1."""
        found: dict[int, list[int]] = {}
        parents = range(-1, len(self) - 1) if self.parents is None else self.parents
        for node, parent in enumerate(parents):
            found.setdefault(parent, []).append(node)
        return found


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the acceptance rule made of a proposal."""

    path: tuple[int, ...]
    """The accepted tokens' indices, from a child of the last committed token on."""
    bonus: int
    """The target's own token after the accepted ones."""

    @property
    def accepted(self) -> int:
        """How many drafted tokens were accepted."""
        return len(self.path)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a round."""

    after: int
    """The last token that was committed before."""
    proposal: Proposal
    verdict: Verdict
    tokens: Sequence[int]
    """Those that were committed: accepted ones and bonus, unless the answer ended before."""
    scores: Scores
    """Of the target, at the last committed token and after each proposed one, hidden states in the
    same order; valid until the target's next call."""

    @property
    def judged(self) -> tuple[int, ...]:
        """The tokens whose continuations the rows of ``scores`` are about."""
        return (self.after, *self.proposal.tokens)


@dataclass(slots=True)
class Slot:
    """Where a sequence is in the target's cache; it may move between rounds."""

    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a drafter may know of a generation before it begins."""

    sampler: Sampler
    """Chooses the draft's tokens as it chooses the target's."""
    prompt_tokens: int
    prediction: Sequence[int] | Int64Array = ()
    """What the caller expects as the answer."""
    expected: ExpectedText | None = None
    """The same with an index, where one was made; it is shared by all answers of a request."""
    tenant: str = ""
    """On whose behalf: what is learnt of texts is kept apart by it."""
    slot: Slot = field(default_factory=Slot)
    """Where the target has the sequence."""


class Drafter:
    """Proposes continuations of a context. Wrong proposals cost time, never correctness.

    The base proposes nothing and notes nothing: a drafter says what it does otherwise.
    """

    name: str
    """What errors and reports call it: its class's name, unless it says another."""
    reading_seconds: float = 0.0
    """Of the latest proposal's time, what reading the context took: later ones are spared it."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if not hasattr(cls, "name") and "name" not in get_annotations(cls):
            cls.name = cls.__name__

    def propose(self, context: Int64Array, budget: Budget) -> Proposal:
        """Tokens expected to follow ``context``, i64[n], as many as the budget has; maybe none.

        The loop trusts none of them. What is more than the budget allows is cut: a tree where
        ``budget.branching`` is false to each token's first continuation, then all to
        ``budget.most`` tokens. What is wrong in the rest is refused: token ids outside the
        target's vocabulary; parents that do not come before; siblings of one id; parts of other
        lengths; chances outside [0, 1]; and, where the acceptance rule reads them, probabilities
        that are no distribution over the vocabulary, give the drawn token no chance or an earlier
        sibling any.

        Args:
            context: the committed tokens; not to be written to.
            budget: of the round.

        An exception, or a refused proposal, is a :class:`DrafterError` that names the drafter. It
        ends the generation, or switches the drafter off for it: see ``broken_drafter`` of
        :class:`specplug.decoding.Decoder`.
        """
        return Proposal()

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """The target has read committed tokens of the sequence, a piece of the prompt or the last
        round's own token; drafted ones that are accepted are for :meth:`commit` to tell.

        Args:
            past: how many tokens are before them. Where the prompt's first pieces were known from
                an earlier request, nobody reads them: they are told of only if their hidden states
                were kept.
            tokens: at least one.
            scores: of the call, whose first hidden states are theirs; valid until the next one. Of
                pieces that were known, scores of no token.
        """

    def commit(self, outcome: Outcome) -> None:
        """What became of a round, also of one that proposed nothing."""

    def reset(self, request: Request) -> None:
        """Forget the sequence: the next proposal is for a new one."""

    def finish(self, request: Request, tokens: Int64Array) -> None:
        """A request's sequence is complete, or was given up: i64[n], prompt included.

        Another request may have begun in the meantime.
        """

    def fork(self) -> Drafter:
        """A drafter for another sequence at the same time; what is learnt of texts is shared.

        Raises:
            SpecplugError: it drafts for one sequence at a time.
        """
        raise SpecplugError(
            f"drafter {self.name!r} cannot serve several sequences: it has no fork; give it one, "
            "or draft for one sequence at a time"
        )

    def close(self) -> None:
        """Release what the drafter holds, and its forks with it."""
