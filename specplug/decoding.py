"""What the loop over one generation and the loop over a batch of them have in common."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self, Unpack, cast

import numpy as np

from specplug.arguments import check_value, checked, shown
from specplug.bundle import Bundle
from specplug.claims import Claim
from specplug.controller import CallCosts, CostsByContext, DraftLength, FixedLength
from specplug.drafters import NoDrafter
from specplug.engine_calls import clear, keep
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.generation import Generation, OnBroken
from specplug.generation_options import (
    DEFAULT_MAX_TOKENS,
    CallOptions,
    DraftTokens,
    GenerationOptions,
    Prompt,
    split_options,
)
from specplug.preparation import Preparation
from specplug.prompts import PromptOptions, refuse_template_options, template_options, truncate
from specplug.tenants import Tenants
from specplug.text import Messages, Tokenizer
from specplug.types import (
    NO_TOKEN,
    DecoderBusyError,
    Drafter,
    Engine,
    EngineError,
    Proposal,
    Scores,
    SpecplugError,
    TreeEngine,
    Verdict,
)

_log = logging.getLogger(__name__)

BrokenDrafter = Literal["raise", "plain"]
"""What a failure of a drafter does: it is raised, or the answer goes on without."""


class Decoder:
    """A target, a drafter and a tokenizer.

    Args:
        target: the engine whose text is wanted.
        drafter: what proposes tokens; None: plain decoding. The text is the same either way.
        draft_tokens: how many tokens a round may draft, at least 0; 0 never asks the drafter;
            ``"auto"``: as many as pay, none included.
        costs: seconds of the target's calls by width, for ``"auto"``; None: measured before the
            first answer, in less than a second.
        inexact_trees: draft trees also where a token's scores in a tree are not those in a chain.
        tokenizer: needed for text in or out; token ids work without.
        stop_token_ids: tokens that end an answer; the tokenizer's own if None.
        broken_drafter: what a failure of the drafter does. ``"raise"``: it ends the answer, with a
            :class:`DrafterError`, or what its own engine raised; for who writes or tests one.
            ``"plain"``: the drafter is switched off for this answer, whose text does not change,
            counted in :attr:`drafter_failures` and logged once; for who serves with one.

    A closed decoder raises :class:`EngineError`.

    Raises:
        TypeError: an unknown keyword.
        ValueError: an argument of a wrong type or outside its range.
    """

    @checked(kept=("draft_tokens",))
    def __init__(
        self,
        target: Engine,
        *,
        drafter: Drafter | None = None,
        draft_tokens: DraftTokens = "auto",
        costs: CallCosts | CostsByContext | None = None,
        inexact_trees: bool = False,
        tokenizer: Tokenizer | None = None,
        stop_token_ids: Sequence[int] | None = None,
        broken_drafter: BrokenDrafter = "raise",
    ) -> None:
        self.target = target
        self.drafter: Drafter = NoDrafter() if drafter is None else drafter
        self._costs = costs
        self._trees = target.spec.supports_tree and (target.spec.exact_trees or inexact_trees)
        self.draft_tokens = draft_tokens
        self.tokenizer = tokenizer
        if stop_token_ids is None:
            stop_token_ids = tokenizer.stop_token_ids if tokenizer else ()
        self.stop_token_ids = frozenset(map(int, stop_token_ids))
        self._calls = threading.Lock()  # held while the engines run
        self._caller: int | None = None  # the thread that has them run
        self._closed = False
        self.broken_drafter: BrokenDrafter = broken_drafter
        """As in the constructor; may be set between generations."""
        self.drafter_failures = 0
        """Answers whose drafter failed and was switched off."""
        self._dirty: set[int] = set()  # rows of the cache that may hold anything, NaN included

    @classmethod
    @checked(kept=("drafter", "draft_tokens"))
    def from_bundle(
        cls,
        path: str | Path,
        *,
        drafter: str = "auto",
        draft_tokens: DraftTokens = "auto",
        inexact_trees: bool = False,
        broken_drafter: BrokenDrafter = "plain",
        **options: Any,
    ) -> Self:
        """Open a bundle: its target, its tokenizer and, if asked for, its draft model.

        Args:
            path: the bundle's folder.
            drafter: a name of :data:`specplug.drafters.DRAFTERS`.
            draft_tokens: as in the constructor.
            inexact_trees: as in the constructor.
            broken_drafter: as in the constructor, and ``"plain"`` unless said otherwise.
            options: of :func:`specplug.opening.open_parts` and, for both engines, of
                :class:`specplug.opening.EngineOptions`.

        Raises:
            TypeError: an unknown keyword.
            ValueError: an argument of a wrong type or outside its range, or one that the drafter
                does not use.
            BundleError: the bundle is damaged, or holds no draft model when one is asked for.
        """
        from specplug.opening import check_part_options, open_decoder

        named = [
            name
            for made in (cls.from_bundle, Decoder.from_bundle)
            for name, one in inspect.signature(made).parameters.items()
            if one.kind is one.KEYWORD_ONLY
        ]
        check_part_options("from_bundle", drafter, options, beside=named)
        check_drafting(drafter, draft_tokens)
        own = {
            "draft_tokens": draft_tokens,
            "inexact_trees": inexact_trees,
            "broken_drafter": broken_drafter,
        }
        return open_decoder(cls, own, Bundle.open(path), drafter, **options)

    @property
    def draft_tokens(self) -> DraftTokens:
        """How many tokens a round may draft; may be set between generations."""
        return self._draft_tokens

    @draft_tokens.setter
    def draft_tokens(self, wanted: DraftTokens) -> None:
        check_draft_tokens(wanted)
        self._draft_tokens = wanted
        self.length: DraftLength | None = FixedLength(wanted) if wanted != "auto" else None
        """What decides how many tokens a round drafts; None until the costs were measured, and then
        what the latest generation's tenant's texts taught."""
        self._by_tenant: Tenants[DraftLength] | None = None

    @checked(kept=("prompt",))
    def encode(
        self, prompt: Prompt, *, max_tokens: int = 1, **options: Unpack[PromptOptions]
    ) -> list[int]:
        """The token ids of a prompt.

        Args:
            prompt: text, token ids (taken as they are) or chat messages.
            max_tokens: of the answer; what ``truncate_prompt_tokens=-1`` leaves room for.
            options: see :class:`specplug.prompts.PromptOptions`.

        Raises:
            TypeError: an unknown keyword.
            ValueError: no prompt of these kinds, text without a tokenizer, or an option that
                cannot be followed.
        """
        wanted = options.get("truncate_prompt_tokens")
        tokens = self._encoded(prompt, options)
        limit = self.target.spec.context_limit
        return truncate(tokens, wanted, context_limit=limit, max_tokens=max_tokens)

    def _encoded(self, prompt: Prompt, options: PromptOptions) -> list[int]:
        ids = token_ids(prompt)
        if ids is not None:
            refuse_template_options(options, "this prompt is token ids")
            return ids
        if self.tokenizer is None:
            raise ValueError("text needs a tokenizer: open a bundle, or pass token ids")
        return self.tokenizer.encode_prompt(
            cast(str | Messages, prompt), chat=options.get("chat"), **template_options(options)
        )

    def _prepared(
        self, prompt: Prompt, options: CallOptions
    ) -> tuple[list[int], GenerationOptions]:
        """The token ids of a prompt, and the options that are not about it."""
        of_prompt, rest = split_options(options)
        most = rest.get("max_tokens", DEFAULT_MAX_TOKENS)
        return self.encode(prompt, max_tokens=most, **of_prompt), rest

    def preparation(
        self, options: GenerationOptions, rehearse: Callable[[str], None] | None = None
    ) -> Preparation:
        """What several answers with the same options share; arguments and errors as there."""
        return Preparation(
            options,
            spec=self.target.spec,
            tokenizer=self.tokenizer,
            own_stop_token_ids=self.stop_token_ids,
            rehearse=rehearse,
        )

    def generation(
        self,
        prompt: Sequence[int],
        prepared: Preparation | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Generation:
        """An answer that has not begun; arguments and errors as of :class:`Generation`."""
        self._check_open()
        return Generation(
            prompt,
            prepared=prepared,
            spec=self.target.spec,
            tokenizer=self.tokenizer,
            own_stop_token_ids=self.stop_token_ids,
            **options,
        )

    @property
    def _on_broken(self) -> OnBroken | None:
        return self._note_broken if self.broken_drafter == "plain" else None

    def _note_broken(self, generation: Generation, what: str, error: SpecplugError) -> None:
        """A drafter failed, and is switched off for this answer."""
        self.drafter_failures += 1
        if self.drafter_failures == 1:
            _log.warning(
                "the drafter failed in %s and is switched off for the answer, whose text does not "
                "change; later failures are counted: %s",
                what,
                error,
                exc_info=error,
            )
        if what == "propose":  # a draft that shares the target's cache may have spoilt its end
            clear(self.target, generation.slot.row, generation.context.cached)

    def _soil(self, row: int) -> None:
        """A call went wrong in a row: whatever is there is not to meet the next sequence."""
        self._dirty.add(row)

    def _look(self, row: int, scores: Scores) -> None:
        """Soil a row where scores that nobody asked for, of rejected drafts, are not numbers: their
        cache entries stay there."""
        if NO_TOKEN in scores.argmax():
            self._soil(row)

    def _clean(self, row: int) -> None:
        """Clear a row, if a call went wrong there, before another sequence is.

        Raises:
            EngineError: it cannot be cleared.
        """
        if row in self._dirty:
            clear(self.target, row)
            self._dirty.discard(row)

    def _claim(self) -> Claim:
        """The sole use of the engines, until it is released.

        Raises:
            DecoderBusyError: another generation has it.
        """
        own = [self.drafter] if not isinstance(self.drafter, NoDrafter) else []
        return Claim(self.target, *own)

    @contextmanager
    def _calling(self, *, wait: bool = True) -> Iterator[None]:
        """The engines run, in this thread alone."""
        self._check_caller()
        if not self._calls.acquire(blocking=wait):
            raise DecoderBusyError("another thread runs this decoder: step it from one thread")
        self._caller = threading.get_ident()
        try:
            yield
        finally:
            self._caller = None
            self._calls.release()

    def _check_caller(self) -> None:
        if self._caller == threading.get_ident():
            raise DecoderBusyError(
                "a callback, processor or drafter may not run or close the decoder it is of"
            )

    def _check_open(self) -> None:
        if self._closed:
            raise EngineError("the decoder is closed: open it again")

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def close(self) -> None:
        """Release the engines; a second time does nothing.

        A round that another thread runs is waited for. What has not ended never will: going on
        with it raises :class:`EngineError`.
        """
        self._check_caller()
        self._closed = True  # before the lock, which a running generation lets go only to take it
        with self._calling():
            self.drafter.close()
            self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def check_draft_tokens(wanted: DraftTokens) -> None:
    """Refuse what is no number of drafted tokens.

    Raises:
        ValueError: with the range.
    """
    check_value("draft_tokens", wanted, DraftTokens)
    if wanted != "auto" and not 0 <= wanted < PREFILL_WIDTH:
        raise ValueError(
            f"draft_tokens {wanted!r}: need auto, or a number from 0 to {PREFILL_WIDTH - 1}"
        )


def check_drafting(drafter: str, draft_tokens: DraftTokens) -> None:
    """Refuse a number of tokens for a drafter that drafts none.

    Raises:
        ValueError: the two contradict one another, or the number is none.
    """
    check_draft_tokens(draft_tokens)
    if drafter == "none" and draft_tokens not in ("auto", 0):
        raise ValueError(
            f"draft_tokens {draft_tokens}: drafter 'none' drafts nothing; choose another one, or "
            "leave draft_tokens out"
        )


def token_ids(prompt: Any) -> list[int] | None:
    """A prompt's token ids; None: it is text or messages.

    Raises:
        ValueError: it is nothing of the kind.
    """
    if isinstance(prompt, str):
        return None
    if isinstance(prompt, np.ndarray) and prompt.ndim == 1:
        prompt = prompt.tolist()
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        if all(isinstance(item, int | np.integer) and type(item) is not bool for item in prompt):
            return [int(item) for item in prompt]
        if all(isinstance(item, Mapping) for item in prompt):
            return None
        if all(isinstance(item, str) for item in prompt):
            raise ValueError(
                f"the prompt {shown(prompt)} is several texts: give one, or use BatchDecoder "
                "for many at once"
            )
    raise ValueError(
        f"the prompt {shown(prompt)} is a {type(prompt).__name__}: give text, a sequence of token "
        "ids, or chat messages ({'role': …, 'content': …})"
    )


def verify(target: Engine, generation: Generation, proposal: Proposal) -> tuple[Scores, Verdict]:
    """One call for one generation: the target's scores, and the verdict on what was proposed.

    The target's cache is left with the entries of the accepted tokens next to one another.
    """
    past, pending, row = generation.context.cached, generation.pending, generation.slot.row
    scores = feed(
        target,
        [*pending, *proposal.tokens],
        past=past,
        scored=len(proposal) + 1,
        parents=proposal.parents if proposal.branches else None,
        row=row,
        observe=generation.observe,
    )
    verdict = generation.judge(scores, proposal)
    if verdict.path != tuple(range(verdict.accepted)):
        nodes = [*range(len(pending)), *(len(pending) + node for node in verdict.path)]
        keep(cast(TreeEngine, target), row, past, nodes)
    return scores, verdict
