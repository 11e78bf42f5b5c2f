"""Calls of an engine, every failure of which is an :class:`EngineError`, whatever it raises.

Engines map their backend's errors themselves; this is for those that miss one. A failed call may
have written any entries from its own ``past`` on, in its own rows; what lies before is valid.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np

from specplug.types import (
    NO_TOKEN,
    BatchEngine,
    Engine,
    EngineError,
    Float32Array,
    Int64Array,
    Scores,
    SpecplugError,
    Step,
    TreeEngine,
)

T = TypeVar("T")


def is_failure(error: BaseException) -> bool:
    """Whether something failed; if not, somebody wants the program to end, or a generator.

    A panic of a library in Rust is a failure, and no :class:`Exception` (pyo3's PanicException).
    So are :class:`SystemExit` and :class:`KeyboardInterrupt` outside the main thread, where no
    signal raises them and they would end that thread alone.
    """
    if isinstance(error, SystemExit | KeyboardInterrupt):
        return threading.current_thread() is not threading.main_thread()
    return not isinstance(error, GeneratorExit)


def as_exception(error: BaseException) -> Exception:
    """A failure as an :class:`Exception`: a panic becomes a :class:`SpecplugError`."""
    if isinstance(error, Exception):
        return error
    made = SpecplugError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def forward(engine: Engine, step: Step) -> Scores:
    """Run the model over ``step``; reading the scores raises nothing else, either, and gives arrays
    of the kind and shape that :class:`specplug.types.Scores` says.

    Raises:
        EngineError: the engine failed.
    """
    return _Scores(_call(engine, "forward", lambda: engine.forward(step)), engine, step)


def save(engine: BatchEngine, row: int, start: int, stop: int) -> Any:
    """As :meth:`BatchEngine.save`.

    Raises:
        EngineError: the engine failed.
    """
    return _call(engine, "save", lambda: engine.save(row, start, stop))


def load(engine: BatchEngine, row: int, start: int, entries: Any) -> None:
    """As :meth:`BatchEngine.load`.

    Raises:
        EngineError: the engine failed.
    """
    _call(engine, "load", lambda: engine.load(row, start, entries))


def keep(engine: TreeEngine, row: int, past: int, nodes: Sequence[int]) -> None:
    """As :meth:`TreeEngine.keep`.

    Raises:
        EngineError: the engine failed.
    """
    _call(engine, "keep", lambda: engine.keep(row, past, nodes))


def clear(engine: Engine, row: int, start: int = 0) -> None:
    """As :meth:`ClearableEngine.clear`; nothing where the engine has no need.

    Raises:
        EngineError: the engine failed.
    """
    if hasattr(engine, "clear"):
        _call(engine, "clear", lambda: cast(Any, engine).clear(row, start))


def _call(engine: Engine, what: str, call: Callable[[], T]) -> T:
    try:
        return call()
    except SpecplugError:
        raise
    except BaseException as error:
        # No generator is ended here.
        if not is_failure(error) and not isinstance(error, GeneratorExit):
            raise
        raise _failed(engine, what, error) from error


def _failed(engine: Engine, what: str, error: BaseException) -> EngineError:
    return EngineError(
        f"engine {engine.spec.name!r} failed in {what}: {type(error).__name__}: {error}"
    )


class _Scores:
    """Scores of an engine; see :class:`specplug.types.Scores`."""

    __slots__ = ("_engine", "_scores", "_step")

    def __init__(self, scores: Scores, engine: Engine, step: Step) -> None:
        self._scores, self._engine, self._step = scores, engine, step

    def argmax(self) -> Int64Array:
        found = _call(self._engine, "argmax", lambda: self._scores.argmax())
        self._check("argmax", found, "integers", self._scored)
        vocab_size = self._engine.spec.vocab_size
        if found.size and not (found.min() >= NO_TOKEN and found.max() < vocab_size):
            raise self._wrong("argmax", f"tokens from {found.min()} to {found.max()}",
                              f"tokens below {vocab_size}")  # fmt: skip
        return found

    def logits(self) -> Float32Array:
        found = _call(self._engine, "logits", lambda: self._scores.logits())
        shape = (*self._scored, self._engine.spec.vocab_size)
        self._check("logits", found, "floats", shape)
        return found

    def hidden(self, name: str) -> Float32Array:
        found = _call(self._engine, "hidden", lambda: self._scores.hidden(name))
        self._check("hidden", found, "floats", (*self._step.tokens.shape, None))
        return found

    @property
    def _scored(self) -> tuple[int, int]:
        rows, width = self._step.tokens.shape
        return rows, width - self._step.scores_from

    def _check(self, what: str, found: Any, kind: str, shape: tuple[int | None, ...]) -> None:
        """Refuse what is no array of a kind and shape; None in the shape: any."""
        wanted = np.integer if kind == "integers" else np.floating
        if (
            isinstance(found, np.ndarray)
            and np.issubdtype(found.dtype, wanted)
            and found.ndim == len(shape)
            and all(need in (None, has) for need, has in zip(shape, found.shape, strict=True))
        ):
            return
        given = type(found).__name__
        if isinstance(found, np.ndarray):
            given = f"{found.dtype}{list(found.shape)}"
        raise self._wrong(what, given, f"{kind} of shape {list(shape)}")

    def _wrong(self, what: str, given: str, wanted: str) -> EngineError:
        return EngineError(
            f"engine {self._engine.spec.name!r} gave {given} as {what}, where {wanted} were "
            "asked for"
        )
