"""What a request comes to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specplug.generation_options import Prompt
from specplug.serving.requests import GenerateRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """A validated request, who sent it, and until when it must be answered."""

    request: GenerateRequest
    prompts: Sequence[Prompt]
    owner: str
    chat: bool
    deadline: float
    """Of the event loop's clock."""

    @property
    def answers(self) -> int:
        """How many are wanted."""
        return len(self.prompts) * (self.request.n or 1)
