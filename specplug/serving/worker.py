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
from typing import Any, TypeVar, Unpack

from specplug.batching import BatchDecoder
from specplug.context import Token
from specplug.engine_calls import as_exception
from specplug.generation import Generation
from specplug.generation_options import GenerationOptions
from specplug.types import EngineError

_log = logging.getLogger(__name__)

MOST_FAILURES = 8
"""Failed steps without a completed answer after which the engine is thought broken."""
_PAUSE, _LONGEST_PAUSE = 0.025, 2.0  # seconds between attempts, doubled each time

T = TypeVar("T")
_Made = Sequence[tuple[Generation, Sequence[Token]]]
_Progress = Sequence[tuple[tuple[Generation, Sequence[Token]], bool]]
"""Of each generation its new tokens, and whether it has ended."""


class _Retry(Exception):  # noqa: N818 - nothing is wrong with who gets it
    """The decoder failed as a whole."""


class Channel:
    """What one generation made and nobody has taken yet. Used on the event loop alone."""

    def __init__(self, generation: Generation) -> None:
        self.generation = generation
        self.most: int | None = None
        """Tokens that may wait; more cancel the generation. None: any number."""
        self.overrun = False
        self.ended = False
        """Whether nothing more will come."""
        self.left = False
        """Whether the decoder has let the generation go."""
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
        if self.most is not None and len(tokens) > self.most:
            self.most += len(tokens)  # an echoed prompt, which comes at once: nobody is behind yet
        if self.most is not None and len(self._tokens) + len(tokens) > self.most:
            self.overrun = True
            self.generation.cancel()
        if not self.overrun and not self.released:
            self._tokens += tokens
        self.wake()

    def limit(self, most: int | None) -> None:
        """Let so many tokens wait beside those that have come before anybody could take them."""
        self.most = None if most is None else most + len(self._tokens)

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
        self._raised = 0  # calls of the decoder in a row that failed as a whole
        self._told = False
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
    def failures(self) -> int:
        """Steps that failed, of the engine or as a whole, since an answer was completed.

        From any thread. A failed step ends the answers in it, and the next ones are tried.
        """
        return self.decoder.failures + self._raised

    @property
    def failing(self) -> bool:
        """Whether :data:`MOST_FAILURES` steps failed since an answer was completed.

        Requests should still be taken: the next completed answer ends this state.
        """
        return self.failures >= MOST_FAILURES

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
        generation = self.decoder.generation(prompt, **options)
        return self.queue(generation)

    def queue(self, generation: Generation) -> Channel:
        """Have a generation of the decoder answered; on any thread, without delay.

        Raises:
            EngineError: the thread has ended.
        """
        generation.start_clock()
        channel = self._channel(generation)
        self.decoder.queue(generation)
        if self._failed:
            self._channels.pop(channel.generation)
            raise EngineError("the thread that decodes has ended")
        self._wake()
        return channel

    def release(self, channel: Channel) -> None:
        """Nobody takes from the channel any more: its generation is cancelled if it runs."""
        channel.released = True
        channel.take()
        if channel.left:
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
        with contextlib.suppress(_Retry):  # the first step will do it
            self._attempt(self.decoder.prepare)
        self.prepared = True
        while True:
            with self._condition:
                while self.decoder.idle and not self._stopping:
                    self._condition.wait()
            if self._stopping:
                return
            if self.decoder.closed:
                _log.error("the decoder was closed: no request can be answered any more")
                self._failed = True
                self._on_loop(self._give_up, EngineError("the decoder is closed"))
                return
            with contextlib.suppress(_Retry):
                self._report(self._attempt(self.decoder.step))

    def _attempt(self, call: Callable[[], T]) -> T:
        """Have the decoder do something; where it fails as a whole, wait a while.

        An engine's failure is no such thing: that ends the answers concerned.

        Raises:
            _Retry: it failed, and may go better the next time.
        """
        try:
            with self._stepping():
                made = call()
        except BaseException as failure:
            self._raised += 1
            if self._raised == 1:
                _log.exception("the decoder failed; it is tried again until it works")
            self._on_loop(self._fail, as_exception(failure))
            with self._condition:
                if not self._stopping:
                    self._condition.wait(min(_PAUSE * 2 ** min(self._raised, 9), _LONGEST_PAUSE))
            raise _Retry from failure
        self._raised = 0
        return made

    def _report(self, made: _Made) -> None:
        if made:
            # Looked at here, since the next step may end what this one did not.
            ended = [generation.finish_reason is not None for generation, _ in made]
            self._on_loop(self._deliver, list(zip(made, ended, strict=True)))

    def _on_loop(self, call: Callable[[Any], None], argument: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody is waiting
            self._loop.call_soon_threadsafe(call, argument)

    def _deliver(self, progress: _Progress) -> None:
        for (generation, tokens), ended in progress:
            channel = self._channel(generation)
            channel.left = ended
            if ended and channel.released:
                self._channels.pop(generation, None)
            if channel.failure is not None:
                continue  # a step failed as a whole: it was told so
            if ended:
                channel.ended, channel.failure = True, generation.error
            try:
                self._on_progress(channel)
            except Exception:  # nobody's answer may depend on it
                if not self._told:
                    _log.exception("counting an answer's progress failed; said once")
                self._told = True
            channel.put(tokens)

    def _fail(self, failure: Exception) -> None:
        for channel in list(self._channels.values()):
            if not channel.ended:
                channel.ended, channel.failure = True, failure
                channel.generation.cancel()
                channel.put(())

    def _give_up(self, failure: Exception) -> None:
        """The decoder will report nothing any more."""
        self._fail(failure)
        for channel in list(self._channels.values()):
            channel.left = True
            if channel.released:
                self._channels.pop(channel.generation)
