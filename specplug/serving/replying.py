"""From answers that are being made to a reply: the whole, or a stream. The same for both shapes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from specplug.context import Token
from specplug.serving.answers import Answers, ClientGoneError, Update
from specplug.serving.logs import Record
from specplug.serving.replies import DONE, EventStream, event, json_reply
from specplug.serving.service import Asked, Service
from specplug.serving.shapes import Shape
from specplug.serving.usage import added_up, usage


class Reply:
    """Of one request.

    Args:
        service: that answers it.
        asked: what is wanted.
        shape: of the objects.
        http: the request.
    """

    def __init__(self, service: Service, asked: Asked, shape: Shape, http: Request) -> None:
        self._service = service
        self._asked = asked
        self._shape = shape
        self._http = http
        self._record: Record = http.state.record
        self._texts: list[list[Token]] = [[] for _ in range(asked.answers)]
        self._reasons = [""] * asked.answers
        self._head = {
            "id": f"{shape.prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.settings.model_name,
            "system_fingerprint": service.settings.fingerprint,
        }

    async def response(self) -> Response:
        """The response, which a stream has yet to make."""
        if self._asked.request.stream:
            settings = self._service.settings
            return EventStream(self._events(), settings.send_timeout, settings.keep_alive_comment)
        async with self._answers() as answers:
            async for updates in answers.updates():
                self._note(updates)
        choices = [
            self._shape.choice(index, tokens, self._reasons[index])
            for index, tokens in enumerate(self._texts)
        ]
        head = {**self._head, "object": self._shape.whole}
        whole = {**head, "choices": choices, **self._totals(answers)}
        if self._asked.request.prompt_logprobs is not None:
            found = [self._shape.prompt_logprobs(one.generation) for one in answers.channels]
            if self._asked.chat:
                whole["prompt_logprobs"] = found[0]
            else:
                for choice, logprobs in zip(choices, found, strict=True):
                    choice["prompt_logprobs"] = logprobs
        return json_reply(whole)

    async def _events(self) -> AsyncGenerator[bytes, None]:
        options = self._asked.request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        head: dict[str, Any] = {**self._head, "object": self._shape.piece}
        unknown = {"usage": None} if with_usage else {}
        opened: set[int] = set()
        async with self._answers() as answers:
            async for updates in answers.updates():
                self._note(updates)
                choices = []
                for update in updates:
                    opening = self._shape.opening(update.index)
                    if update.index not in opened and opening is not None:
                        choices.append(opening)
                    opened.add(update.index)
                    choices.append(
                        self._shape.delta(update.index, update.tokens, update.finish_reason)
                    )
                yield b"".join(event({**head, "choices": [one], **unknown}) for one in choices)
        if with_usage:
            yield event({**head, "choices": [], **self._totals(answers)})
        yield DONE

    @asynccontextmanager
    async def _answers(self) -> AsyncIterator[Answers]:
        """The answers, which are given up when the client goes away."""
        async with self._service.answering(self._asked) as answers:
            watching = asyncio.create_task(self._watch(answers))
            try:
                yield answers
            finally:
                watching.cancel()
                self._describe(answers)

    async def _watch(self, answers: Answers) -> None:
        while (await self._http.receive())["type"] != "http.disconnect":
            pass
        answers.fail(ClientGoneError())

    def _note(self, updates: Sequence[Update]) -> None:
        for update in updates:
            if update.tokens and self._record.first_token is None:
                self._record.first_token = time.perf_counter()
            self._texts[update.index] += update.tokens
            self._reasons[update.index] = update.finish_reason or ""

    def _totals(self, answers: Answers) -> dict[str, Any]:
        generations = [channel.generation for channel in answers.channels]
        stats = added_up(generations)
        return {
            "usage": usage(len(self._asked.prompts), generations, self._texts),
            "metrics": {"speculative_decoding": stats.as_dict()},
        }

    def _describe(self, answers: Answers) -> None:
        """What the log says, also of an answer that was given up."""
        generations = [channel.generation for channel in answers.channels]
        stats = added_up(generations)
        record = self._record
        record.answer = {
            "stream": bool(self._asked.request.stream),
            "answers": len(generations),
            "finish_reasons": self._reasons,
            "prompt_tokens": stats.prompt_tokens,
            "cached_tokens": sum(generation.cached_tokens for generation in generations),
            "completion_tokens": stats.new_tokens,
            "drafted_tokens": stats.drafted,
            "accepted_tokens": stats.accepted,
            "acceptance_length": round(stats.acceptance_length, 3),
        }
        if self._service.settings.log_prompts:
            record.text = {
                "prompt": self._asked.prompts,
                "completions": ["".join(map(str, tokens)) for tokens in self._texts],
            }
