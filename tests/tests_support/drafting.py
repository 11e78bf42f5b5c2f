"""What a drafter is told, without a loop."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from specplug import Outcome, Proposal, Request, SamplingParams, Verdict
from specplug.engines.host import HostScores
from specplug.sampler import Sampler


def request(
    vocab_size: int, *, prompt_tokens: int = 1, prediction: Sequence[int] = (), tenant: str = ""
) -> Request:
    """A greedy one."""
    sampler = Sampler(SamplingParams(), vocab_size=vocab_size, prompt_tokens=prompt_tokens)
    return Request(
        sampler=sampler, prompt_tokens=prompt_tokens, prediction=prediction, tenant=tenant
    )


def outcome(
    proposal: Proposal,
    accepted: int,
    tokens: Sequence[int],
    *,
    after: int = 0,
    best: Sequence[int] = (),
    vocab_size: int = 8,
) -> Outcome:
    """Of a chain whose first tokens were accepted; the rows' best tokens are ``best``."""
    logits = np.zeros((1, len(best), vocab_size), dtype=np.float32)
    logits[0, np.arange(len(best)), list(best)] = 1
    verdict = Verdict(tuple(range(accepted)), tokens[-1])
    return Outcome(after, proposal, verdict, tokens, HostScores(logits))
