"""What every engine has to do, as tests: subclass :class:`EngineContract` and give it a fixture.

    class TestMyEngine(EngineContract):
        @pytest.fixture
        def make(self):
            return lambda max_batch=1: MyEngine(..., max_batch=max_batch)

``make`` opens the same model every time, of at least 64 tokens' context. An engine that takes
one row only raises :class:`EngineError` for a larger ``max_batch``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from specplug.types import (
    BatchEngine,
    ClearableEngine,
    Engine,
    EngineError,
    EngineSpec,
    Float32Array,
    Step,
    TreeEngine,
)

TOLERANCE = 1e-4
"""Of logits, relative to the largest, where sums may run in another order."""
CALLS, WARM_UP_CALLS, MOST_GROWTH = 1000, 200, 8 << 20

Make = Callable[..., Engine]


def rows(engine: Engine, tokens: Sequence[int], past: int, scores_from: int = 0) -> Float32Array:
    """Logits of a run of tokens, padded to ``min_width`` as the loop does, f32[T', V]."""
    run = [*tokens, *[0] * (engine.spec.min_width - len(tokens))]
    step = Step(
        tokens=np.array([run], dtype=np.int64), past=np.array([past]), scores_from=scores_from
    )
    found: Float32Array = engine.forward(step).logits()[0, : len(tokens) - scores_from].copy()
    return found


def assert_close(found: Float32Array, expected: Float32Array, tolerance: float = TOLERANCE) -> None:
    """Equal but for the order of sums."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


class EngineContract:
    """The suite."""

    exact = True
    """Whether a token's rows are bit for bit the same in every call that it is in; what a draft
    head says changes no text, so it need not be."""

    tolerance = TOLERANCE
    """As :data:`TOLERANCE`, for an engine whose type rounds more."""

    def assert_same(self, found: Float32Array, expected: Float32Array) -> None:
        """Equal, of engines that are exact."""
        if self.exact:
            assert np.array_equal(found, expected)
        else:
            self.assert_near(found, expected)

    def assert_near(self, found: Float32Array, expected: Float32Array) -> None:
        """Equal but for the order of sums, in this engine's type."""
        assert_close(found, expected, self.tolerance)

    @pytest.fixture
    def engine(self, make: Make) -> Iterator[Engine]:
        """An engine of one row."""
        made = make()
        yield made
        made.close()

    @pytest.fixture
    def tokens(self, engine: Engine) -> list[int]:
        """A sequence to run."""
        length = min(80, engine.spec.context_limit)
        return self.sequence(engine, length)

    @staticmethod
    def sequence(engine: Engine, length: int, seed: int = 1) -> list[int]:
        """Random tokens."""
        random = np.random.default_rng(seed)
        return [int(token) for token in random.integers(0, engine.spec.vocab_size, size=length)]

    def batched(self, make: Make, max_batch: int) -> Engine:
        """An engine of several rows."""
        try:
            return make(max_batch=max_batch)
        except EngineError as error:
            pytest.skip(str(error))

    def test_spec(self, engine: Engine) -> None:
        """It says what it is."""
        assert isinstance(engine, Engine)
        assert isinstance(engine.spec, EngineSpec)
        assert isinstance(engine, TreeEngine) or not engine.spec.supports_tree
        assert engine.spec.supports_tree or not engine.spec.exact_trees
        assert 1 <= engine.spec.min_width < engine.spec.context_limit <= engine.spec.max_length

    def test_shapes_and_dtypes(self, engine: Engine, tokens: list[int]) -> None:
        """Logits are f32[B, T', V], their argmax i64[B, T']."""
        step = Step(tokens=np.array([tokens[:20]]), past=np.array([0]), scores_from=17)
        scores = engine.forward(step)
        assert scores.logits().shape == (1, 3, engine.spec.vocab_size)
        assert scores.logits().dtype == np.float32
        assert scores.argmax().dtype == np.int64
        assert np.array_equal(scores.argmax(), scores.logits().argmax(axis=-1))
        with pytest.raises(EngineError, match="hidden-state output 'middle'"):
            scores.hidden("middle")

    def test_hidden_states_are_given_for_every_token(
        self, engine: Engine, tokens: list[int]
    ) -> None:
        """Whatever scores are wanted, and in pieces as at once; they are none but those named."""
        if not engine.spec.hidden:
            pytest.skip(f"{engine.spec.name} has no hidden states here")
        for name in engine.spec.hidden:

            def states(start: int, stop: int, scores_from: int, name: str = name) -> Float32Array:
                step = Step(
                    tokens=np.array([tokens[start:stop]]),
                    past=np.array([start]),
                    scores_from=scores_from,
                )
                found: Float32Array = engine.forward(step).hidden(name)[0].copy()
                assert len(found) == stop - start
                assert found.dtype == np.float32
                return found

            whole = states(0, 48, 0)
            assert np.array_equal(states(0, 48, 47), whole)
            pieces = [states(start, start + 16, 15) for start in (0, 16, 32)]
            self.assert_near(np.concatenate(pieces), whole)

    def test_scores_from_only_leaves_out(self, engine: Engine, tokens: list[int]) -> None:
        """Scores do not depend on which of them are asked for."""
        last = len(tokens) - 10
        self.assert_same(rows(engine, tokens, 0, last), rows(engine, tokens, 0)[last:])

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 16])
    def test_rows_do_not_depend_on_the_width(
        self, engine: Engine, tokens: list[int], width: int
    ) -> None:
        """Step by step and several at once: bit for bit the same from ``min_width`` on."""
        wide = self.in_pieces(engine, tokens, 16)
        self.assert_same(self.in_pieces(engine, tokens, width), wide)

    @pytest.mark.parametrize("width", [24, 40])
    def test_prefill_in_pieces_is_prefill_at_once(
        self, engine: Engine, tokens: list[int], width: int
    ) -> None:
        """But for the order of sums, which wide calls may change."""
        self.assert_near(self.in_pieces(engine, tokens, width), rows(engine, tokens, 0))

    @staticmethod
    def in_pieces(engine: Engine, tokens: Sequence[int], width: int) -> Float32Array:
        """Logits of a sequence that is run in calls of one width."""
        starts = range(0, len(tokens), width)
        return np.concatenate([rows(engine, tokens[s : s + width], s) for s in starts])

    def test_rollback_to_any_shorter_past(self, engine: Engine, tokens: list[int]) -> None:
        """A smaller ``past`` is all that takes tokens back."""
        vocab_size = engine.spec.vocab_size
        before = self.in_pieces(engine, tokens, 8)
        for past in (len(tokens) - 1, 50, 17, 3, 0):
            tail = tokens[past : past + 8]
            rows(engine, [(token + 1) % vocab_size for token in tail], past)
            self.assert_same(rows(engine, tail, past), before[past : past + len(tail)])
            rows(engine, tokens[past:], past)  # for the next round

    def test_capacity_grows_to_the_limit_and_keeps_the_cache(self, engine: Engine) -> None:
        """A cache that grows keeps what it holds."""
        limit = engine.spec.context_limit
        many = self.sequence(engine, limit, seed=2)
        rows(engine, many[: limit - 30], 0)
        after = rows(engine, many[limit // 3 : limit // 3 + 8], limit // 3)
        rows(engine, many[limit // 3 + 8 :], limit // 3 + 8)
        last = rows(engine, many[limit - 4 :], limit - 4)
        assert np.array_equal(rows(engine, many[limit // 3 : limit // 3 + 8], limit // 3), after)
        rows(engine, many[limit // 3 + 8 :], limit // 3 + 8)
        assert np.array_equal(rows(engine, many[limit - 4 :], limit - 4), last)

    def test_what_the_spec_forbids_is_refused(self, engine: Engine, tokens: list[int]) -> None:
        """With a message that names the value; the engine works on."""
        spec = engine.spec
        run: dict[str, Any] = {
            "tokens": np.zeros((1, max(4, spec.min_width)), np.int64),
            "past": np.array([0]),
        }
        width = run["tokens"].shape[1]
        wide = np.zeros((spec.max_batch + 1, width), np.int64)
        for change, message in (
            ({"tokens": np.zeros((1, 0), np.int64)}, "shape"),
            ({"tokens": np.zeros(3, np.int64)}, "shape"),
            ({"tokens": wide, "past": np.zeros(len(wide), np.int64)}, f"batch of {len(wide)}"),
            ({"past": np.array([0, 0])}, "past has shape"),
            ({"past": np.array([-1])}, "past -1"),
            ({"past": np.array([spec.max_length - width + 1])}, "max_length"),
            ({"tokens": np.full((1, width), spec.vocab_size)}, "vocabulary"),
            ({"scores_from": width}, "scores_from"),
        ):
            with pytest.raises(EngineError, match=message):
                engine.forward(Step(**run | change))
        if not spec.supports_tree:
            parents = np.arange(-1, width - 1, dtype=np.int32)
            with pytest.raises(EngineError, match="token trees"):
                engine.forward(Step(**run, parents=parents))
        if spec.min_width > 1:
            narrow = np.zeros((1, spec.min_width - 1), np.int64)
            with pytest.raises(EngineError, match="narrower than min_width"):
                engine.forward(Step(**run | {"tokens": narrow}))
        assert rows(engine, tokens, 0).shape == (len(tokens), spec.vocab_size)

    @pytest.mark.parametrize("max_batch", [2, 8])
    def test_ragged_batches(self, make: Make, max_batch: int) -> None:
        """Rows of other pasts and lengths are what each is alone."""
        engine, alone = self.batched(make, max_batch), make()
        sequences = [self.sequence(engine, 40, seed=row) for row in range(max_batch)]
        whole = [rows(alone, sequence, 0) for sequence in sequences]
        random = np.random.default_rng(0)
        pasts = np.zeros(max_batch, dtype=np.int64)
        for width in (20, 8, max(3, engine.spec.min_width)):
            lengths = random.integers(engine.spec.min_width, width + 1, size=max_batch)
            pieces = np.zeros((max_batch, width), dtype=np.int64)
            for row, (past, length) in enumerate(zip(pasts, lengths, strict=True)):
                pieces[row, :length] = sequences[row][past : past + length]
            step = Step(tokens=pieces, past=pasts, lengths=lengths.astype(np.int32))
            found = engine.forward(step).logits()
            for row, (past, length) in enumerate(zip(pasts, lengths, strict=True)):
                self.assert_near(found[row, :length], whole[row][past : past + length])
            pasts = np.maximum(pasts + lengths - 2, 0)  # some of them taken back
        engine.close()
        alone.close()

    def test_rows_of_the_cache(self, make: Make) -> None:
        """A call's rows may be any neighbours, and what a row holds may become another's."""
        engine, alone = self.batched(make, 4), make()
        assert isinstance(engine, BatchEngine)
        sequences = [self.sequence(engine, 40, seed=row) for row in range(4)]
        whole = [rows(alone, sequence, 0) for sequence in sequences]
        for row in (2, 0, 3, 1):
            step = Step(tokens=np.array([sequences[row][:24]]), past=np.array([0]), first_row=row)
            self.assert_near(engine.forward(step).logits()[0], whole[row][:24])
        pair = Step(
            tokens=np.array([sequence[20:30] for sequence in sequences[1:3]]),
            past=np.array([20, 20]),
            first_row=1,
        )
        found = engine.forward(pair).logits()
        self.assert_near(found[0], whole[1][20:30])
        self.assert_near(found[1], whole[2][20:30])
        first, rest = engine.save(2, 0, 10), engine.save(2, 10, 25)
        engine.load(3, 0, first)
        engine.load(3, 10, rest)
        moved = Step(tokens=np.array([sequences[2][25:40]]), past=np.array([25]), first_row=3)
        self.assert_near(engine.forward(moved).logits()[0], whole[2][25:40])
        with pytest.raises(EngineError, match="first_row 3"):
            engine.forward(replace(pair, first_row=3))
        engine.close()
        alone.close()

    def test_a_tree_is_its_paths(self, engine: Engine, tokens: list[int]) -> None:
        """Every node's row is that of its path alone, and the kept path goes on as a chain."""
        if not engine.spec.supports_tree:
            pytest.skip(f"{engine.spec.name} has no token trees here")
        assert isinstance(engine, TreeEngine)
        past, parents = 30, [-1, 0, 1, 1, 0, 4]
        nodes = self.sequence(engine, len(parents), seed=3)
        paths = [[0, 1, 2], [0, 1, 3], [0, 4, 5]]
        rows(engine, tokens[:past], 0)
        expected = [rows(engine, [nodes[node] for node in path], past) for path in paths]
        step = Step(
            tokens=np.array([nodes]),
            past=np.array([past]),
            parents=np.array(parents, dtype=np.int32),
        )
        found = engine.forward(step).logits()[0].copy()
        for path, wanted in zip(paths, expected, strict=True):
            self.assert_near(found[path], wanted)
        chosen = paths[-1]
        after = rows(engine, tokens[past : past + 6], past + 3)
        rows(engine, [nodes[node] for node in chosen], past)
        after = rows(engine, tokens[past : past + 6], past + 3)
        engine.forward(step)
        engine.keep(0, past, chosen)
        self.assert_near(rows(engine, tokens[past : past + 6], past + 3), after)

    def failing(self, engine: Engine, error: Exception) -> AbstractContextManager[None]:
        """Meanwhile the backend of an engine raises ``error`` in every call; override this."""
        pytest.skip(f"the suite does not say how the backend of {engine.spec.name} fails")

    @pytest.mark.parametrize("kind", [RuntimeError, MemoryError, OSError, KeyError, AssertionError])
    def test_every_failure_of_the_backend_is_an_engine_error(
        self, engine: Engine, tokens: list[int], kind: type[Exception]
    ) -> None:
        """And the entries before the call's ``past`` are what they were."""
        expected = rows(engine, tokens[:40], 0)[30:]
        with self.failing(engine, kind("no memory")), pytest.raises(EngineError):
            rows(engine, tokens[:10], 30)
        self.assert_near(rows(engine, tokens[30:40], 30), expected)

    def test_scores_do_not_depend_on_what_lies_beyond_past(
        self, engine: Engine, tokens: list[int]
    ) -> None:
        """NaN of a call that went wrong, say: the loop has such rows cleared, where they can be."""
        if not isinstance(engine, BatchEngine):
            pytest.skip(f"{engine.spec.name}'s entries cannot be written here")
        expected = rows(engine, tokens[:40], 0)[30:]
        nothing = _not_numbers(engine.save(0, 0, 40))
        engine.load(0, 30, nothing)
        if isinstance(engine, ClearableEngine):
            engine.clear(0, 30)
        self.assert_near(rows(engine, tokens[30:40], 30), expected)
        engine.load(0, 0, nothing)  # a whole row, as for another sequence
        if isinstance(engine, ClearableEngine):
            engine.clear(0, 0)
        self.assert_near(rows(engine, tokens[:40], 0)[30:], expected)

    def test_close_twice_then_use(self, make: Make) -> None:
        """A closed engine refuses calls; a new one works."""
        engine = make()
        tokens = self.sequence(engine, 20)
        expected = rows(engine, tokens, 0)
        engine.close()
        engine.close()
        with pytest.raises(EngineError, match="closed"):
            rows(engine, tokens, 0)
        again = make()
        assert np.array_equal(rows(again, tokens, 0), expected)
        again.close()

    def test_two_engines_in_one_process(self, make: Make) -> None:
        """Neither sees the other's cache."""
        first, second = make(), make()
        tokens = self.sequence(first, 48)
        expected = rows(first, tokens, 0)
        other = rows(second, tokens[::-1], 0)
        self.assert_near(rows(first, tokens[40:], 40), expected[40:])
        self.assert_near(rows(second, tokens[::-1][40:], 40), other[40:])
        first.close()
        assert np.array_equal(rows(second, tokens[::-1], 0), other)
        second.close()

    def test_calls_from_several_threads_one_at_a_time(
        self, engine: Engine, tokens: list[int]
    ) -> None:
        """An engine is not bound to the thread that made it."""
        expected = self.in_pieces(engine, tokens, 16)
        found: list[Float32Array] = []
        for start in range(0, len(tokens), 16):
            thread = threading.Thread(
                target=lambda at=start: found.append(rows(engine, tokens[at : at + 16], at))
            )
            thread.start()
            thread.join()
        assert np.array_equal(np.concatenate(found), expected)

    def test_memory_is_flat(self, engine: Engine, tokens: list[int]) -> None:
        """A thousand calls of all widths leave nothing behind."""
        if not Path("/proc/self/statm").exists():
            pytest.skip("no /proc here to read memory from")

        def call(number: int) -> None:
            width = number % 16 + 1
            rows(engine, tokens[:width], number % 32)

        rows(engine, tokens, 0)
        for number in range(WARM_UP_CALLS):
            call(number)
        before = _resident_bytes()
        for number in range(CALLS):
            call(number)
        assert _resident_bytes() - before < MOST_GROWTH


def _not_numbers(entries: Any) -> Any:
    """Cache entries of the same shape that are all NaN, whatever floats they are."""
    if not isinstance(entries, np.ndarray):
        return entries * float("nan")
    made = entries.copy()
    made.view(np.uint8)[...] = 0xFF
    return made


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
