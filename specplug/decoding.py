"""What the loop over one generation and the loop over a batch of them have in common."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, Unpack, cast

import numpy as np

from specplug.bundle import Bundle
from specplug.controller import CallCosts, CostsByContext, DraftLength, FixedLength
from specplug.drafters import DRAFTERS, NoDrafter
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.generation import (
    DEFAULT_MAX_TOKENS,
    CallOptions,
    DraftTokens,
    Generation,
    GenerationOptions,
    Prompt,
    split_options,
)
from specplug.prompts import PromptOptions, refuse_template_options, template_options, truncate
from specplug.text import Messages, Tokenizer
from specplug.types import Drafter, Engine, Proposal, Scores, TreeEngine, Verdict


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
    """

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
    ) -> None:
        self.target = target
        self.drafter: Drafter = drafter or NoDrafter()
        self._costs = costs
        self._trees = target.spec.supports_tree and (target.spec.exact_trees or inexact_trees)
        self.draft_tokens = draft_tokens
        self.tokenizer = tokenizer
        if stop_token_ids is None:
            stop_token_ids = tokenizer.stop_token_ids if tokenizer else ()
        self.stop_token_ids = frozenset(stop_token_ids)

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        *,
        drafter: str = "auto",
        draft_tokens: DraftTokens = "auto",
        inexact_trees: bool = False,
        **options: Any,
    ) -> Self:
        """Open a bundle: its target, its tokenizer and, if asked for, its draft model.

        Args:
            path: the bundle's folder.
            drafter: a name of :data:`specplug.drafters.DRAFTERS`.
            draft_tokens: as in the constructor.
            inexact_trees: as in the constructor.
            options: of :func:`specplug.opening.open_parts` and, for both engines, of
                :class:`specplug.opening.EngineOptions`.

        Raises:
            BundleError: the bundle is damaged, or holds no draft model when one is asked for.
        """
        from specplug.opening import open_parts

        if drafter not in DRAFTERS:
            raise ValueError(f"drafter {drafter!r} is none of {', '.join(DRAFTERS)}")
        parts = open_parts(Bundle.open(path), drafter, **options)
        return cls(**parts, draft_tokens=draft_tokens, inexact_trees=inexact_trees)

    @property
    def draft_tokens(self) -> DraftTokens:
        """How many tokens a round may draft; may be set between generations."""
        return self._draft_tokens

    @draft_tokens.setter
    def draft_tokens(self, wanted: DraftTokens) -> None:
        if wanted != "auto" and not (isinstance(wanted, int) and 0 <= wanted < PREFILL_WIDTH):
            raise ValueError(
                f"draft_tokens {wanted!r}: need auto, or a number from 0 to {PREFILL_WIDTH - 1}"
            )
        self._draft_tokens = wanted
        self.length: DraftLength | None = FixedLength(wanted) if wanted != "auto" else None
        """What decides how many tokens a round drafts; None until the costs were measured."""

    def encode(
        self, prompt: Prompt, *, max_tokens: int = 1, **options: Unpack[PromptOptions]
    ) -> list[int]:
        """The token ids of a prompt.

        Args:
            prompt: text, token ids (taken as they are) or chat messages.
            max_tokens: of the answer; what ``truncate_prompt_tokens=-1`` leaves room for.
            options: see :class:`specplug.prompts.PromptOptions`.

        Raises:
            ValueError: text without a tokenizer, or an option that cannot be followed.
        """
        wanted = options.get("truncate_prompt_tokens")
        tokens = self._encoded(prompt, options)
        limit = self.target.spec.context_limit
        return truncate(tokens, wanted, context_limit=limit, max_tokens=max_tokens)

    def _encoded(self, prompt: Prompt, options: PromptOptions) -> list[int]:
        if not isinstance(prompt, str) and all(
            isinstance(item, int | np.integer) for item in prompt
        ):
            refuse_template_options(options, "this prompt is token ids")
            return [int(item) for item in cast(Sequence[int], prompt)]
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

    def _generation(
        self, prompt: Sequence[int], **options: Unpack[GenerationOptions]
    ) -> Generation:
        return Generation(
            prompt,
            spec=self.target.spec,
            tokenizer=self.tokenizer,
            own_stop_token_ids=self.stop_token_ids,
            **options,
        )

    def close(self) -> None:
        """Release the engines."""
        self.drafter.close()
        self.target.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


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
        cast(TreeEngine, target).keep(row, past, nodes)
    return scores, verdict
