"""From answers that are being made to a reply: the whole, or a stream. The same for both shapes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from specplug.context import Token
from specplug.serving.answers import Answers, ClientGoneError, Update
from specplug.serving.errors import ApiError
from specplug.serving.logs import Record
from specplug.serving.replies import DONE, EventStream, PiecedReply, event, json_pieces
from specplug.serving.service import Asked, Service
from specplug.serving.shapes import Shape
from specplug.serving.usage import added_up, usage

_FEW = 1000  # tokens and log-probabilities that become JSON in about two milliseconds
_PIECE = 1 << 16  # bytes of events that are sent at once

T = TypeVar("T")


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
        self._opened: set[int] = set()
        self._values = 0  # tokens and log-probabilities that the answers have so far
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
            pieces = await self._aside(answers, lambda: list(json_pieces(self._whole(answers))))
        return PiecedReply(pieces, self._service.settings.send_timeout)

    def _whole(self, answers: Answers) -> dict[str, Any]:
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
        return whole

    async def _aside(self, answers: Answers, make: Callable[[], T]) -> T:
        """What takes long to make of the answers: not on the event loop, one request's at a time.

        Raises:
            ApiError: status 504: not in time.
        """
        if self._values + self._unsent(answers) <= _FEW:
            return make()
        try:
            async with asyncio.timeout_at(self._asked.deadline):
                return await self._service.off_loop(make)
        except TimeoutError:
            raise ApiError(504, "the answer took longer than this server allows") from None

    def _unsent(self, answers: Answers) -> int:
        """What else a whole reply or its totals are made of."""
        top = self._asked.request.prompt_logprobs
        return sum(
            len(one.generation.request.prediction)
            + (0 if top is None else len(one.generation.prompt) * (top + 2))
            for one in answers.channels
        )

    async def _events(self) -> AsyncGenerator[bytes, None]:
        options = self._asked.request.stream_options
        with_usage = options is not None and bool(options.include_usage)
        unknown = {"usage": None} if with_usage else {}
        head: dict[str, Any] = {**self._head, "object": self._shape.piece}
        async with self._answers() as answers:
            async for updates in answers.updates():
                self._note(updates)
                piece = b""
                for choice in self._deltas(updates):
                    piece += event({**head, "choices": [choice], **unknown})
                    if len(piece) > _PIECE:
                        yield piece
                        await asyncio.sleep(0)  # others have their turn
                        piece = b""
                if piece:
                    yield piece
            totals = await self._aside(answers, lambda: self._totals(answers)) if with_usage else {}
        if with_usage:
            last = {**head, "choices": [], **totals}
            yield b"data: " + b"".join(json_pieces(last)) + b"\n\n"
        yield DONE

    def _deltas(self, updates: Sequence[Update]) -> Iterator[dict[str, Any]]:
        """A stream's choices; many tokens at once, such as an echoed prompt's, in several."""
        for update in updates:
            opening = self._shape.opening(update.index)
            if update.index not in self._opened and opening is not None:
                yield opening
            self._opened.add(update.index)
            tokens = update.tokens
            step = max(1, _FEW * len(tokens) // max(_values(tokens), 1))
            while len(tokens) > step:
                yield self._shape.delta(update.index, tokens[:step], None)
                tokens = tokens[step:]
            yield self._shape.delta(update.index, tokens, update.finish_reason)

    @asynccontextmanager
    async def _answers(self) -> AsyncIterator[Answers]:
        """The answers, which are given up when the client goes away."""
        gone = asyncio.create_task(self._gone())
        try:
            async with self._service.answering(self._asked, gone) as answers:
                gone.add_done_callback(lambda _: answers.fail(ClientGoneError()))
                try:
                    yield answers
                finally:
                    self._describe(answers)
        finally:
            gone.cancel()

    async def _gone(self) -> None:
        """Return when the client has gone away."""
        while (await self._http.receive())["type"] != "http.disconnect":
            pass

    def _note(self, updates: Sequence[Update]) -> None:
        stream = self._asked.request.stream
        for update in updates:
            self._values += _values(update.tokens)
            if update.tokens and self._record.first_token is None:
                self._record.first_token = time.perf_counter()
            self._texts[update.index] += (
                [replace(one, logprobs=None) if one.logprobs else one for one in update.tokens]
                if stream  # which has sent them, and they are large
                else update.tokens
            )
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
                "completions": ["".join(token.text for token in tokens) for tokens in self._texts],
            }


def _values(tokens: Sequence[Token]) -> int:
    """How many things of tokens become JSON."""
    return sum(1 if one.logprobs is None else 2 + len(one.logprobs.top) for one in tokens)
