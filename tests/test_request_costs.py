"""What a request may name by the thousand: rules of sampling and stop strings, equal to plain
loops over them, at a cost that does not hold the others up."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import SamplingParams
from specplug.logit_rules import LogitRules
from specplug.stop_strings import StopStrings
from specplug.text import Tokenizer
from tests_support.tokenizer_kinds import made_kind

V = 12
TOKENS = st.integers(0, V - 1)


def plainly(row: np.ndarray, params: SamplingParams, history: np.ndarray, prompt: int):
    """The rules as loops in Python, as they were."""
    row = row.copy()
    for token, bias in params.logit_bias.items():
        row[token] += np.float32(bias)
    if params.repetition_penalty != 1:
        seen = np.unique(history)
        penalty = np.float32(params.repetition_penalty)
        row[seen] = np.where(row[seen] < 0, row[seen] * penalty, row[seen] / penalty)
    if params.presence_penalty or params.frequency_penalty:
        tokens, counts = np.unique(history[prompt:], return_counts=True)
        taken = params.presence_penalty + params.frequency_penalty * counts
        row[tokens] -= taken.astype(np.float32)
    size = params.no_repeat_ngram
    for start in range(len(history) - size + 1 if size else 0):
        window = history[start : start + size]
        if np.array_equal(window[:-1], history[len(history) + 1 - size :]):
            row[window[-1]] = -np.inf
    for sequence in params.bad_words_ids:
        before = len(sequence) - 1
        if before <= len(history) and [*history[len(history) - before :]] == [*sequence[:-1]]:
            row[sequence[-1]] = -np.inf
    for token in params.banned_tokens:
        row[token] = -np.inf
    if params.allowed_token_ids is not None:
        for token in range(V):
            if token not in params.allowed_token_ids:
                row[token] = -np.inf
    return row


@settings(max_examples=300)
@given(data=st.data())
def test_rules_are_what_loops_make_of_them(data: st.DataObject) -> None:
    row = np.random.default_rng(data.draw(st.integers(0, 2**32))).normal(size=V)
    row = row.astype(np.float32)
    small = st.lists(st.integers(0, 3), min_size=1, max_size=12)  # so that much recurs
    history = np.array(data.draw(small), dtype=np.int64)
    params = SamplingParams(
        logit_bias=data.draw(st.dictionaries(TOKENS, st.floats(-100, 100) | st.integers(-9, 9))),
        repetition_penalty=data.draw(st.sampled_from([1.0, 0.7, 1.3])),
        presence_penalty=data.draw(st.sampled_from([0.0, 0.3, -1.7])),
        frequency_penalty=data.draw(st.sampled_from([0.0, 0.1, -0.7])),
        no_repeat_ngram=data.draw(st.integers(0, 5)),
        bad_words_ids=data.draw(st.lists(small.map(lambda one: one[:3]), max_size=5)),
        banned_tokens=data.draw(st.lists(st.integers(0, 4), max_size=3)),
        allowed_token_ids=data.draw(st.none() | st.just([5, 6, 6, 7, 11, 1])),
    )
    prompt = data.draw(st.integers(0, len(history)))
    before = row.copy()
    made = LogitRules(params).shape(row, history, prompt)
    assert made.dtype == np.float32
    assert made.tobytes() == plainly(row, params, history, prompt).tobytes()
    assert row.tobytes() == before.tobytes()


def test_ten_thousands_of_rules_cost_a_row_little() -> None:
    """A loop over them took 40 ms a row, and every row of a batch waited for it."""
    size, random = 49_152, np.random.default_rng(0)
    params = SamplingParams(
        logit_bias=dict.fromkeys(range(size), 0.5),
        allowed_token_ids=range(size),
        bad_words_ids=[random.integers(0, size, 2 + n % 5).tolist() for n in range(2000)],
        repetition_penalty=1.1,
        frequency_penalty=0.1,
        no_repeat_ngram=64,
    )
    rules, row = LogitRules(params), random.normal(size=size).astype(np.float32)
    history = np.zeros(8192, dtype=np.int64)  # the worst for n-grams
    seconds = []
    for _ in range(5):
        began = time.thread_time()
        rules.shape(row, history, 100)
        seconds.append(time.thread_time() - began)
    assert min(seconds) < 0.02


def test_a_row_does_not_go_through_the_rules_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are arrays, made once."""
    rules = LogitRules(SamplingParams(logit_bias=dict.fromkeys(range(64), 0.5)))
    row, history = np.zeros(64, dtype=np.float32), np.zeros(2, dtype=np.int64)
    for name in ("token_array", "np.array"):
        monkeypatch.setattr(f"specplug.logit_rules.{name}", None)
    assert (rules.shape(row, history, 1) == 0.5).all()


# --- stop strings ---------------------------------------------------------------------------------

LETTERS = st.text("ab", max_size=30)


@settings(max_examples=500)
@given(
    stops=st.lists(st.text("ab", min_size=1, max_size=6), min_size=1, max_size=4),
    pieces=st.lists(st.text("ab", max_size=7), max_size=12),
    exempt=st.integers(0, 8),
)
def test_stop_strings_are_found_as_by_searching_the_whole(
    stops: list[str], pieces: list[str], exempt: int
) -> None:
    watch, read = StopStrings(stops), ""
    for piece in pieces:
        found = watch.peek(piece, len(read), exempt)
        assert found == watch.read(piece, len(read), exempt)
        read += piece
        ends = [
            (at + len(stop), at)
            for stop in stops
            for at in range(len(read))
            if read.startswith(stop, at) and at + len(stop) > exempt
        ]
        assert found == min(ends, default=None)
        if found is not None:
            break
        begun = [
            n for stop in stops for n in range(len(stop)) if n <= len(read) and
            read.endswith(stop[:n])
        ]  # fmt: skip
        assert watch.begun == max(begun)


def test_a_text_that_seems_to_begin_long_stop_strings_is_read_once() -> None:
    """It was compared with each beginning of each of them, for each token."""
    watch = StopStrings(["a" * n + "b" for n in range(100_000, 99_936, -1)])
    began = time.thread_time()
    for at in range(0, 5_000, 5):
        assert watch.read("aaaaa", at, 0) is None
    assert watch.read("c", 5_000, 0) is None
    assert watch.begun == 0
    assert time.thread_time() - began < 10  # half a second; it took an hour


# --- long texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("special_tokens", [False, True])
def test_long_texts_are_tokenized_as_short_ones(special_tokens: bool) -> None:
    for name in ("byte-level", "sentencepiece"):
        tokenizer = made_kind(name).tokenizer
        text = "The quick brown fox.\n é狐 " * 400
        wanted = tokenizer.backend.encode(text, add_special_tokens=special_tokens).ids
        assert tokenizer.encode(text, special_tokens=special_tokens) == wanted


def longest_gap(call) -> tuple[float, float]:
    """Seconds that a call takes, and for how long of these another thread could not run."""
    gaps, ended = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not ended.is_set():
            time.sleep(0.0005)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    ended.set()
    thread.join()
    return seconds, max(gaps)


def test_a_long_text_holds_up_no_other_thread() -> None:
    """A mebibyte took a second and a half, in which no other thread ran at all."""
    tokenizer: Tokenizer = made_kind("byte-level").tokenizer
    shares = []
    for _ in range(3):
        seconds, gap = longest_gap(lambda: tokenizer.encode("1234567890" * 50_000))
        shares.append(gap / seconds)
    assert min(shares) < 0.5
