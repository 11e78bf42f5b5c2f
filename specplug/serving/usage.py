"""What a request used, added up over its answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from specplug.context import Token
from specplug.drafters import PredictedSource
from specplug.generation import Generation
from specplug.stats import SpeculationStats


def added_up(generations: Sequence[Generation]) -> SpeculationStats:
    """The counts of all of them."""
    total = SpeculationStats()
    for generation in generations:
        stats = generation.stats
        total.prompt_tokens += stats.prompt_tokens
        total.new_tokens += stats.new_tokens
        total.drafted_per_round += stats.drafted_per_round
        total.accepted_per_round += stats.accepted_per_round
        total.draft_length = max(total.draft_length, stats.draft_length)
    return total


def usage(
    prompts: int, generations: Sequence[Generation], texts: Sequence[Sequence[Token]]
) -> dict[str, Any]:
    """OpenAI's ``usage``.

    Args:
        prompts: how many there were.
        generations: of all answers, those of the first prompt first; it counts once.
        texts: their tokens.
    """
    completion = sum(generation.stats.new_tokens for generation in generations)
    accepted = rejected = 0
    for generation, tokens in zip(generations, texts, strict=True):
        expected = generation.request.prediction
        came_true = followed(generation, tokens) if len(expected) else 0
        accepted += came_true
        rejected += len(expected) - came_true
    firsts = generations[:: len(generations) // prompts]
    cached = sum(generation.cached_tokens for generation in firsts)
    prompt = sum(generation.stats.prompt_tokens for generation in firsts)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {
            "accepted_prediction_tokens": accepted,
            "rejected_prediction_tokens": rejected,
        },
    }


def followed(generation: Generation, tokens: Sequence[Token]) -> int:
    """Tokens of the prediction that came true where the predicted drafter expected them.

    The answer is gone through again with the drafter's own rule, so the number is that of a
    decoder which drafts nothing but the prediction, and never depends on what was really drafted:
    not on the load, nor on other drafters, nor on ``speculation: false``. Where the answer is
    the predicted text, all of them came true, whatever its tokens are.
    """
    request = generation.request
    echoed = len(tokens) - generation.stats.new_tokens
    text = "".join(token.text for token in tokens[echoed:])
    if generation.predicted_text and text == generation.predicted_text:
        return len(request.prediction)
    source = PredictedSource()
    source.reset(request)
    answer = [token.id for token in tokens[echoed:]]
    context = np.array([*generation.prompt, *answer], dtype=np.int64)
    reached = set()
    for end in range(request.prompt_tokens, len(context)):
        place = source.begin(context[:end])
        if place is not None and source.step(place, int(context[end])) is not None:
            reached.add(place[0])
    return len(reached)
