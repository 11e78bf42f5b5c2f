"""Calls of an engine, every failure of which is an :class:`EngineError`, whatever it raises.

Engines map their backend's errors themselves; this is for those that miss one. A failed call may
have written any entries from its own ``past`` on, in its own rows; what lies before is valid.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

from specplug.types import (
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
    So is :class:`SystemExit` outside the main thread, where it would end that thread alone.
    """
    if isinstance(error, SystemExit):
        return threading.current_thread() is not threading.main_thread()
    return not isinstance(error, KeyboardInterrupt | GeneratorExit)


def as_exception(error: BaseException) -> Exception:
    """A failure as an :class:`Exception`: a panic becomes a :class:`SpecplugError`."""
    if isinstance(error, Exception):
        return error
    made = SpecplugError(f"{type(error).__name__}: {error}")
    made.__cause__ = error
    return made


def forward(engine: Engine, step: Step) -> Scores:
    """Run the model over ``step``; reading the scores raises nothing else, either.

    Raises:
        EngineError: the engine failed.
    """
    return _Scores(_call(engine, "forward", lambda: engine.forward(step)), engine)


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
        if not is_failure(error):
            raise
        raise _failed(engine, what, error) from error


def _failed(engine: Engine, what: str, error: BaseException) -> EngineError:
    return EngineError(
        f"engine {engine.spec.name!r} failed in {what}: {type(error).__name__}: {error}"
    )


class _Scores:
    """Scores of an engine; see :class:`specplug.types.Scores`."""

    __slots__ = ("_engine", "_scores")

    def __init__(self, scores: Scores, engine: Engine) -> None:
        self._scores, self._engine = scores, engine

    def argmax(self) -> Int64Array:
        return _call(self._engine, "argmax", self._scores.argmax)

    def logits(self) -> Float32Array:
        return _call(self._engine, "logits", self._scores.logits)

    def hidden(self, name: str) -> Float32Array:
        return _call(self._engine, "hidden", lambda: self._scores.hidden(name))
