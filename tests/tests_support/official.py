"""Questions asked by OpenAI's own client: whole and streamed, with speculation and without."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import openai

from tests_support.serving import MODEL

PROMPT = "one two three one two"
ASKED = [{"role": "user", "content": PROMPT}]
SAMPLED = {"temperature": 1, "seed": 7}
LENGTH = 24


@dataclass(frozen=True)
class Answer:
    text: str
    finish_reason: str | None
    ids: tuple[int, ...]


OFFICIAL = {"n", "stop", "seed", "temperature", "max_tokens", "logit_bias"}


class Asking:
    """One of the two ways to ask."""

    def __init__(self, client: openai.OpenAI, *, chat: bool) -> None:
        self.chat = chat
        self._create = client.chat.completions.create if chat else client.completions.create
        self._prompt = {"messages": ASKED} if chat else {"prompt": PROMPT}
        self._known: dict[str, list[Answer]] = {}

    def _parameters(self, fields: dict[str, Any]) -> dict[str, Any]:
        given = {"n": 2, "max_tokens": LENGTH, **SAMPLED, **fields}
        official = OFFICIAL | ({"response_format"} if self.chat else set())
        known = {name: value for name, value in given.items() if name in official}
        more = {name: value for name, value in given.items() if name not in official}
        return {"model": MODEL, **self._prompt, **known, "extra_body": more}

    def whole(self, **fields: Any) -> Any:
        return self._create(**self._parameters(fields))

    def streamed(self, **fields: Any) -> list[Answer]:
        texts: dict[int, str] = defaultdict(str)
        ids: dict[int, list[int]] = defaultdict(list)
        reasons: dict[int, str] = {}
        options = {"include_token_origins": True}
        for chunk in self._create(**self._parameters(fields), stream=True, stream_options=options):
            for choice in chunk.choices:
                texts[choice.index] += (choice.delta.content if self.chat else choice.text) or ""
                ids[choice.index] += [token["id"] for token in getattr(choice, "tokens", [])]
                reasons[choice.index] = choice.finish_reason
        return [Answer(texts[n], reasons[n], tuple(ids[n])) for n in sorted(texts)]

    def answers(self, **fields: Any) -> list[Answer]:
        """The answers, the same ones however they are asked for."""
        key = repr(sorted(fields.items()))
        if key not in self._known:
            self._known[key] = self._answers(**fields)
        return self._known[key]

    def _answers(self, **fields: Any) -> list[Answer]:
        streamed = self.streamed(**fields)
        for speculation in (True, False):
            made = self.whole(**fields, speculation=speculation)
            choices = sorted(made.choices, key=lambda choice: choice.index)
            texts = [choice.message.content if self.chat else choice.text for choice in choices]
            assert texts == [answer.text for answer in streamed]
            reasons = [choice.finish_reason for choice in choices]
            assert reasons == [answer.finish_reason for answer in streamed]
            assert made.usage.completion_tokens == sum(len(answer.ids) for answer in streamed)
        return streamed
