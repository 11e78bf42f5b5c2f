"""What a generation did, as raw counts; every rate is derived from them when asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class SpeculationStats:
    """Counts of one generation, or, added up, of several.

    A *round* is one call of the target after the prompt's own. Times are in seconds.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    drafted_per_round: list[int] = field(default_factory=list)
    accepted_per_round: list[int] = field(default_factory=list)
    prefill_seconds: float = 0.0
    """From the request to the first token."""
    decode_seconds: float = 0.0
    """From the first token to the last."""
    target_seconds: float = 0.0
    """Inside the target engine, prompt included."""
    draft_seconds: float = 0.0
    """Inside the drafter, its engine included."""
    draft_length: int = 0
    """The most tokens that a round was allowed to draft."""
    drafter_failures: int = 0
    """How often the drafter failed, and was switched off; the text is plain decoding's from there.
    """

    @property
    def rounds(self) -> int:
        """Calls of the target after the prompt's."""
        return len(self.drafted_per_round)

    @property
    def drafted(self) -> int:
        """Tokens proposed."""
        return sum(self.drafted_per_round)

    @property
    def accepted(self) -> int:
        """Proposed tokens that became text."""
        return sum(self.accepted_per_round)

    @property
    def acceptance_rate(self) -> float:
        """Accepted / drafted; 0 when nothing was drafted."""
        return self.accepted / self.drafted if self.drafted else 0.0

    @property
    def acceptance_length(self) -> float:
        """Tokens a round, the bonus token included (vLLM's definition); 1 before any round."""
        return 1 + self.accepted / self.rounds if self.rounds else 1.0

    @property
    def seconds(self) -> float:
        """From the request to the last token."""
        return self.prefill_seconds + self.decode_seconds

    @property
    def tokens_per_second(self) -> float:
        """New tokens over the whole time, prompt included."""
        return self.new_tokens / self.seconds if self.seconds else 0.0

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens after the first over the time after the first."""
        return (self.new_tokens - 1) / self.decode_seconds if self.decode_seconds else 0.0

    def as_dict(self) -> dict[str, Any]:
        """The per-request fields of vLLM's ``metrics.speculative_decoding``, under its names."""
        longest = max(self.drafted_per_round, default=0)
        histogram = [0] * (longest + 1)
        by_draft_length: dict[str, list[int]] = {}
        for drafted, accepted in zip(self.drafted_per_round, self.accepted_per_round, strict=True):
            histogram[accepted] += 1
            by_draft_length.setdefault(str(drafted), [0] * (drafted + 1))[accepted] += 1
        return {
            "mean_acceptance_length": self.acceptance_length,
            "draft_acceptance_rate": self.acceptance_rate,
            "acceptance_histogram": histogram,
            "acceptance_histogram_by_draft_length": by_draft_length,
            "num_spec_steps": self.rounds,
            "num_accepted_draft_tokens": self.accepted,
            "num_draft_tokens": self.drafted,
            "num_spec_tokens": self.draft_length,
            "per_step_accepted": list(self.accepted_per_round),
            "per_step_drafted": list(self.drafted_per_round),
        }
