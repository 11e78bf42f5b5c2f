"""One suite, every adapter: what the loop relies on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from specplug import Engine, EngineError, EngineOptions, EngineSpec, Step
from specplug.bundle import Bundle
from specplug.engines import load
from specplug.engines.fake import FakeEngine

VOCAB = 260
LENGTH = 1199


def fake(_: dict[str, Path]) -> Engine:
    return FakeEngine(
        lambda prefix: np.random.default_rng(prefix[-8:]).normal(size=VOCAB),
        vocab_size=VOCAB,
        max_length=LENGTH,
    )


def onnxruntime(precision: str) -> Callable[[dict[str, Path]], Engine]:
    def make(bundles: dict[str, Path]) -> Engine:
        bundle = Bundle.open(bundles[precision])
        return load(bundle.path, bundle.manifest.target, EngineOptions())

    return make


ENGINES = {
    "fake": fake,
    "onnxruntime-fp32": onnxruntime("fp32"),
    "onnxruntime-w8a8": onnxruntime("w8a8"),
    "onnxruntime-int4": onnxruntime("int4"),
    "onnxruntime-concat": onnxruntime("optimum"),
    "onnxruntime-genai-int4": onnxruntime("genai-int4"),
}


@pytest.fixture
def bundles(tiny_bundles: dict[str, Path], foreign_bundles: dict[str, Path]) -> dict[str, Path]:
    return tiny_bundles | foreign_bundles


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, bundles: dict[str, Path]):
    made = ENGINES[request.param](bundles)
    yield made
    made.close()


@pytest.fixture
def tokens() -> np.ndarray:
    return np.random.default_rng(1).integers(0, VOCAB, size=80)


def rows(engine: Engine, tokens: np.ndarray, past: int, scores_from: int = 0) -> np.ndarray:
    """Logits of a run of tokens, padded to min_width as the loop does."""
    padding = max(engine.spec.min_width - len(tokens), 0)
    padded = np.append(tokens, np.zeros(padding, dtype=np.int64))
    step = Step(
        tokens=padded[None].astype(np.int64), past=np.array([past]), scores_from=scores_from
    )
    return engine.forward(step).logits()[0, : len(tokens) - scores_from].copy()


def test_spec(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert isinstance(engine.spec, EngineSpec)
    assert engine.spec.vocab_size == VOCAB
    assert engine.spec.max_length == LENGTH
    assert engine.spec.context_limit <= LENGTH


def test_shapes_and_dtypes(engine: Engine, tokens: np.ndarray) -> None:
    step = Step(tokens=tokens[None, :12], past=np.array([0]), scores_from=9)
    scores = engine.forward(step)
    assert scores.logits().shape == (1, 3, VOCAB)
    assert scores.logits().dtype == np.float32
    assert scores.argmax().shape == (1, 3)
    assert scores.argmax().dtype == np.int64
    assert np.array_equal(scores.argmax()[0], scores.logits()[0].argmax(axis=-1))
    with pytest.raises(EngineError, match="hidden-state output 'middle'"):
        scores.hidden("middle")


def test_scores_from_only_leaves_out(engine: Engine, tokens: np.ndarray) -> None:
    assert np.array_equal(rows(engine, tokens, 0, 70), rows(engine, tokens, 0)[70:])


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 16, 40])
def test_rows_do_not_depend_on_the_width(engine: Engine, tokens: np.ndarray, width: int) -> None:
    whole = rows(engine, tokens, 0)
    pieces = [rows(engine, tokens[start : start + width], start) for start in range(0, 80, width)]
    assert np.array_equal(np.concatenate(pieces), whole)


def test_rollback_to_any_shorter_past(engine: Engine, tokens: np.ndarray) -> None:
    whole = rows(engine, tokens, 0)
    for past in (79, 50, 17, 3, 0):
        rows(engine, (tokens[past:] + 1) % VOCAB, past)  # wrong tokens, to be overwritten
        assert np.array_equal(rows(engine, tokens[past:], past), whole[past:])


def test_capacity_grows_to_the_limit_and_keeps_the_cache(engine: Engine) -> None:
    many = np.random.default_rng(2).integers(0, VOCAB, size=LENGTH)
    rows(engine, many[:500], 0)
    after = rows(engine, many[500:520], 500)
    rows(engine, many[520:1190], 520)
    last = rows(engine, many[1190:], 1190)
    assert np.array_equal(rows(engine, many[500:520], 500), after)
    rows(engine, many[520:1190], 520)
    assert np.array_equal(rows(engine, many[1190:], 1190), last)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step(tokens=np.zeros((1, 0), np.int64), past=np.array([0])), "shape"),
        (Step(tokens=np.zeros(3, np.int64), past=np.array([0])), "shape"),
        (Step(tokens=np.zeros((2, 4), np.int64), past=np.array([0, 0])), "batch of 2"),
        (Step(tokens=np.zeros((1, 4), np.int64), past=np.array([0, 0])), "past has shape"),
        (Step(tokens=np.zeros((1, 4), np.int64), past=np.array([-1])), "past -1"),
        (Step(tokens=np.zeros((1, 4), np.int64), past=np.array([LENGTH - 3])), "max_length"),
        (Step(tokens=np.full((1, 4), VOCAB), past=np.array([0])), "vocabulary"),
        (Step(tokens=np.zeros((1, 4), np.int64), past=np.array([0]), scores_from=4), "scores_from"),
        (
            Step(
                tokens=np.zeros((1, 4), np.int64),
                past=np.array([0]),
                parents=np.array([-1, 0, 0, 1], np.int32),
            ),
            "token trees",
        ),
    ],
)
def test_what_the_spec_forbids_is_refused(engine: Engine, step: Step, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        engine.forward(step)


def test_close_twice_then_use(engine: Engine, tokens: np.ndarray) -> None:
    rows(engine, tokens, 0)
    engine.close()
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        rows(engine, tokens, 0)


@pytest.mark.parametrize("name", ENGINES)
def test_two_engines_in_one_process(
    name: str, bundles: dict[str, Path], tokens: np.ndarray
) -> None:
    first, second = ENGINES[name](bundles), ENGINES[name](bundles)
    expected = rows(first, tokens, 0)
    other = rows(second, tokens[::-1], 0)
    assert np.array_equal(rows(first, tokens[40:], 40), expected[40:])
    assert np.array_equal(rows(second, tokens[::-1][40:], 40), other[40:])
    first.close()
    assert np.array_equal(rows(second, tokens[::-1], 0), other)
    second.close()


def test_calls_from_several_threads_one_at_a_time(engine: Engine, tokens: np.ndarray) -> None:
    expected = rows(engine, tokens, 0)
    found: list[np.ndarray] = []
    for start in range(0, 80, 20):
        thread = threading.Thread(
            target=lambda start=start: found.append(rows(engine, tokens[start : start + 20], start))
        )
        thread.start()
        thread.join()
    assert np.array_equal(np.concatenate(found), expected)
