"""From a request to generations that wait for their turn: all that grows with its size."""

from __future__ import annotations

import threading
from collections.abc import Callable

from specplug.batching import BatchDecoder
from specplug.generation import Generation
from specplug.library_errors import public_text
from specplug.serving import options
from specplug.serving.asked import Asked
from specplug.serving.constraints import constraint
from specplug.serving.errors import ApiError
from specplug.serving.settings import ServerSettings
from specplug.types import MissingExtraError


class AbandonedError(Exception):
    """Nobody waits for the preparation any more."""


class Preparing:
    """Tokenizes a request, compiles its grammar and makes its generations, on any thread.

    Args:
        decoder: that will answer it.
        settings: of the server.
        asked: what is wanted.
        rehearse: refuses grammars that take too long.
    """

    def __init__(
        self,
        decoder: BatchDecoder,
        settings: ServerSettings,
        asked: Asked,
        rehearse: Callable[[str], None] | None = None,
    ) -> None:
        self._decoder = decoder
        self._settings = settings
        self._asked = asked
        self._rehearse = rehearse
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Do nothing more than what has begun; from any thread."""
        self._abandoned.set()

    def generations(self) -> list[Generation]:
        """The answers to be, in order; none of them queued.

        Raises:
            ApiError: what is asked for cannot be done.
            AbandonedError: after :meth:`abandon`.
        """
        asked = self._asked
        try:
            prompts = self._prompts()
        except ValueError as error:
            where = options.field_of(str(error), asked.request)
            where = where or ("messages" if asked.chat else "prompt")
            raise ApiError(400, public_text(error), param=where) from error
        try:
            return self._made(prompts)
        except MissingExtraError:
            wanted = constraint(asked.request)
            raise ApiError(
                400,
                "this server was set up without structured output",
                param=wanted.field if wanted else None,
                code="unsupported_parameter",
            ) from None
        except ValueError as error:
            where = options.field_of(str(error), asked.request)
            raise ApiError(400, public_text(error), param=where) from error

    def _prompts(self) -> list[list[int]]:
        request, decoder = self._asked.request, self._decoder
        assert decoder.tokenizer is not None
        spec = decoder.target.spec
        reading = options.prompt_options(
            request, decoder.tokenizer.template_variables, spec, self._settings
        )
        prompts = []
        for prompt in self._asked.prompts:
            self._check()
            if isinstance(prompt, str) and reading.get("truncate_prompt_tokens") is None:
                least = decoder.tokenizer.fewest_tokens(prompt)
                options.check_prompt(request, least, spec, self._settings, at_least=True)
            prompts.append(decoder.encode(prompt, **reading))
        return prompts

    def _made(self, prompts: list[list[int]]) -> list[Generation]:
        request, decoder = self._asked.request, self._decoder
        lengths = [
            options.max_tokens(request, len(prompt), decoder.target.spec, self._settings)
            for prompt in prompts
        ]
        self._check()
        made = options.generation_options(request, tenant=self._asked.owner)
        shared = decoder.preparation(made, self._rehearse)
        found = []
        for prompt, made["max_tokens"] in zip(prompts, lengths, strict=True):
            for made["sample"] in range(request.n or 1):
                self._check()
                found.append(decoder.generation(prompt, shared, **made))
        return found

    def _check(self) -> None:
        if self._abandoned.is_set():
            raise AbandonedError
