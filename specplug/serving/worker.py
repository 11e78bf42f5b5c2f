"""The one thread that steps the decoder, and how what it makes comes to the event loop.

The loop is told once a step, whatever the step made; an idle worker sleeps until it is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Unpack

from specplug.batching import BatchDecoder
from specplug.context import Token
from specplug.generation import Generation
from specplug.generation_options import GenerationOptions
from specplug.types import EngineError

_log = logging.getLogger(__name__)

_Progress = Sequence[tuple[tuple[Generation, Sequence[Token]], bool]]
"""Of each generation its new tokens, and whether it has ended."""


class Channel:
    """What one generation made and nobody has taken yet. Used on the event loop alone."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.most: int | None = None
        """Tokens that may wait; more cancel the generation. None: any number."""
        self.overrun = False
        self.ended = False
        """Whether nothing more will come."""
        self.failure: Exception | None = None
        self.wake: Callable[[], None] = lambda: None
        self.released = False
        self.counted_tokens = self.counted_rounds = 0
        """What the metrics know of."""
        self.counted_seconds = 0.0
        """As they do."""
        self._tokens: list[Token] = []

    def put(self, tokens: Sequence[Token]) -> None:
        """Add tokens and wake whoever takes them."""
        if self.most is not None and len(self._tokens) + len(tokens) > self.most:
            self.overrun = True
            self.generation.cancel()
        if not self.overrun and not self.released:
            self._tokens += tokens
        self.wake()

    def take(self) -> list[Token]:
        """All there are."""
        taken, self._tokens = self._tokens, []
        return taken


class Worker:
    """Steps a decoder while it has anything to do.

    Args:
        decoder: nobody else may step it.
        on_progress: called on the event loop with every channel that a step reported.
    """

    def __init__(self, decoder: BatchDecoder, on_progress: Callable[[Channel], None]) -> None:
        self.decoder = decoder
        self._on_progress = on_progress
        self._channels: dict[Generation, Channel] = {}
        self._condition = threading.Condition()
        self._stopping = self._failed = False
        self.prepared = False
        """Whether the decoder knows what its calls cost."""
        self._thread = threading.Thread(target=self._run, name="specplug-worker", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._step_began: float | None = None  # of the monotonic clock; None between steps

    @property
    def step_seconds(self) -> float:
        """Seconds that the running step has taken so far; 0.0 between steps. From any thread.

        Measuring what the engine's calls cost, before the first step, counts as a step.
        """
        began = self._step_began
        return 0.0 if began is None else time.monotonic() - began

    def stalled(self, limit: float) -> bool:
        """Whether the running step has taken more than ``limit`` seconds. From any thread."""
        return self.step_seconds > limit

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin, on the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def stop(self, within: float | None = None) -> bool:
        """End after the current step; what has not ended then never will.

        Args:
            within: seconds to wait for that step; None: as long as it takes, which is for ever if
                the engine hangs.

        Returns:
            Whether the thread has ended. If not, the engine still runs in it: closing the decoder
            would wait for it, too.
        """
        self._stopping = True
        self._wake()
        self._thread.join(within)
        return not self._thread.is_alive()

    def submit(self, prompt: Sequence[int], **options: Unpack[GenerationOptions]) -> Channel:
        """As :meth:`BatchDecoder.submit`, on any thread; checking may take a while.

        Raises:
            EngineError: the thread has ended.
        """
        channel = self._channel(self.decoder.submit(prompt, **options))
        if self._failed:
            self._channels.pop(channel.generation)
            raise EngineError("the thread that decodes has ended")
        self._wake()
        return channel

    def release(self, channel: Channel) -> None:
        """Nobody takes from the channel any more: its generation is cancelled if it runs."""
        channel.released = True
        channel.take()
        if channel.ended:
            self._channels.pop(channel.generation, None)
        else:
            channel.generation.cancel()
            self._wake()

    def _channel(self, generation: Generation) -> Channel:
        # The thread may report a generation before submit has returned it: who asks first makes it.
        return self._channels.setdefault(generation, Channel(generation))

    @contextlib.contextmanager
    def _stepping(self) -> Iterator[None]:
        self._step_began = time.monotonic()
        try:
            yield
        finally:
            self._step_began = None

    def _wake(self) -> None:
        with self._condition:
            self._condition.notify()

    def _run(self) -> None:
        try:
            with self._stepping():
                self.decoder.prepare()
            self.prepared = True
            while True:
                with self._condition:
                    while self.decoder.idle and not self._stopping:
                        self._condition.wait()
                if self._stopping:
                    return
                made: dict[Generation, list[Token]] = {}
                with self._stepping():
                    progress = self.decoder.step()
                for generation, tokens in progress:
                    made.setdefault(generation, []).extend(tokens)
                if made:
                    # Looked at here, since the next step may end what this one did not.
                    ended = [generation.finish_reason is not None for generation in made]
                    self._on_loop(self._deliver, list(zip(made.items(), ended, strict=True)))
        except Exception as failure:
            _log.exception("the decoder failed: no request can be answered any more")
            self._failed = True
            self._on_loop(self._fail, failure)

    def _on_loop(self, call: Callable[[Any], None], argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is waiting
            self._loop.call_soon_threadsafe(call, argument)

    def _deliver(self, progress: _Progress) -> None:
        for (generation, tokens), ended in progress:
            channel = self._channel(generation)
            channel.ended = ended
            if ended:
                channel.failure = generation.error
                if channel.released:
                    self._channels.pop(generation, None)
            self._on_progress(channel)
            channel.put(tokens)

    def _fail(self, failure: Exception) -> None:
        for channel in list(self._channels.values()):
            channel.ended, channel.failure = True, failure
            channel.put(())
