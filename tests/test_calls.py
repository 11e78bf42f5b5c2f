"""Calls that say something else than their caller meant are refused, before any work."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from specplug import (
    BatchDecoder,
    DecoderBusyError,
    EngineError,
    EngineOptions,
    NgramDrafter,
    SamplingParams,
    SpeculativeDecoder,
)
from specplug.drafters import DRAFTERS
from specplug.engines.fake import FakeEngine
from specplug.generation_options import GenerationOptions
from specplug.opening import make_drafter
from tests_support.languages import language

VOCAB = 12


def engine(rows: int = 1) -> FakeEngine:
    return FakeEngine(language(3, vocab_size=VOCAB), vocab_size=VOCAB, max_batch=rows)


def plain(prompt: list[int], tokens: int = 24) -> tuple[int, ...]:
    return SpeculativeDecoder(engine()).generate(prompt, max_tokens=tokens).token_ids


CALLS: dict[str, Callable[[FakeEngine, dict[str, Any]], object]] = {
    "generate": lambda target, options: SpeculativeDecoder(target).generate([1], **options),
    "stream": lambda target, options: SpeculativeDecoder(target).stream([1], **options),
    "rounds": lambda target, options: SpeculativeDecoder(target).rounds([1], **options),
    "submit": lambda target, options: BatchDecoder(target).submit([1], **options),
}


# --- unknown keywords -------------------------------------------------------------------------


@pytest.mark.parametrize("call", CALLS)
def test_unknown_options_are_refused_at_the_call(call: str) -> None:
    target = engine()
    for given, told in (
        ({"max_tokenz": 3}, "no argument 'max_tokenz': did you mean 'max_tokens'"),
        ({"max_new_tokens": 3}, "did you mean 'max_tokens'"),
        ({"zzz": 3}, "it has .*max_tokens"),
    ):
        with pytest.raises(TypeError, match=rf"{call}\(\) {told}|{call}\(\) .*{told}"):
            CALLS[call](target, given)
    assert not target.steps


@pytest.mark.parametrize("call", CALLS)
def test_each_sampling_option_is_told_where_it_belongs(call: str) -> None:
    target = engine()
    for name in {
        one.name for one in fields(SamplingParams)
    } - GenerationOptions.__annotations__.keys():
        with pytest.raises(TypeError, match=rf"{name}.*sampling=SamplingParams\({name}=…\)"):
            CALLS[call](target, {name: 1})
    with pytest.raises(TypeError, match=r"did you mean 'temperature'\? pass sampling="):
        CALLS[call](target, {"temprature": 1.0})
    assert not target.steps


def test_openers_name_the_nearest_keyword(tmp_path: Path) -> None:
    for kind in (SpeculativeDecoder, BatchDecoder):
        with pytest.raises(TypeError, match="'drafterr': did you mean 'drafter'"):
            kind(engine(), drafterr=None)
        missing = tmp_path / "none.bundle"  # nothing is opened before
        for given, told in (
            ({"thread": 2}, "did you mean 'threads'"),
            ({"drafer": "none"}, "did you mean 'drafter'"),
            ({"draft_token": 4}, "did you mean 'draft_tokens'"),
            ({"allow_inexact_trees": True}, "did you mean 'inexact_trees'"),
            ({"engine": "pytorch"}, "pass target_engine= or draft_engine="),
            ({"device": "cpu"}, "pass target_device= or draft_device="),
            ({"temperature": 1.0}, "no argument 'temperature'"),
        ):
            with pytest.raises(TypeError, match=told):
                kind.from_bundle(missing, **given)


# --- drafters by name -------------------------------------------------------------------------


def test_a_drafter_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"drafter 'sufix' is none of .*: did you mean 'suffix'"):
        make_drafter("sufix")
    with pytest.raises(ValueError, match="drafter 5: it must be text"):
        make_drafter(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'draft' is a model: give draft="):
        make_drafter("draft")
    with pytest.raises(TypeError, match=r"'prompt_lookup_mim'.*did you mean 'prompt_lookup_min'"):
        make_drafter("ngram", prompt_lookup_mim=3)
    with pytest.raises(ValueError, match="prompt_lookup_min: drafter 'suffix' does not use it"):
        make_drafter("suffix", prompt_lookup_min=3)


def test_an_entry_made_by_hand_says_how_to_pass_a_drafter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DRAFTERS, "mine", "a drafter of mine")
    with pytest.raises(ValueError, match=r"'mine'.*SpeculativeDecoder\(target, drafter=…\)"):
        make_drafter("mine")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"drafter": "none", "draft_tokens": 4}, "draft_tokens 4: drafter 'none' drafts nothing"),
        ({"drafter": "suffix", "prompt_lookup_min": 3}, "prompt_lookup_min 3.*'ngram' alone"),
        ({"drafter": "ngram", "draft_device": "cpu"}, "draft_device 'cpu'.*has no engine"),
        ({"drafter": "ngram", "prompt_lookup_min": 0}, "prompt_lookup_min 0"),
        ({"threads": 0}, "threads 0: it must be in"),
        ({"threads": True}, "threads True: it must be a whole number or None"),
        ({"max_batch": 0}, "max_batch 0: it must be at least 1"),
        ({"providers": "CPUExecutionProvider"}, "providers .*: it must be a sequence of text"),
        ({"history": 5}, "history 5: it must be a History or None"),
        ({"draft_tokens": 2.5}, "draft_tokens 2.5"),
        ({"draft_tokens": True}, "draft_tokens True"),
        ({"inexact_trees": "yes"}, "inexact_trees 'yes': it must be True or False"),
    ],
)
def test_openers_refuse_what_means_nothing(
    options: dict[str, Any], told: str, tmp_path: Path
) -> None:
    for kind in (SpeculativeDecoder, BatchDecoder):
        with pytest.raises(ValueError, match=told):
            kind.from_bundle(tmp_path / "none.bundle", **options)


def test_engine_options_are_checked_wherever_they_are_made() -> None:
    with pytest.raises(ValueError, match="device '': it must be the name of a device"):
        EngineOptions(device="")
    with pytest.raises(ValueError, match=r"sources\[0\] 5: it must be a path"):
        EngineOptions(sources=(5,))  # type: ignore[arg-type]


def test_parameters_are_what_they_were_when_they_were_checked() -> None:
    bias, banned = {1: 2.0}, [3]
    sampling = SamplingParams(logit_bias=bias, banned_tokens=banned)
    bias[VOCAB + 1] = 1.0
    banned.append(VOCAB + 1)
    assert sampling == SamplingParams(logit_bias={1: 2.0}, banned_tokens=[3])
    SpeculativeDecoder(engine()).generate([1], max_tokens=2, sampling=sampling)


# --- one generation at a time -----------------------------------------------------------------


def test_interleaved_streams_are_refused_and_the_first_one_is_right() -> None:
    decoder = SpeculativeDecoder(engine())
    first, second = decoder.stream([1, 2], max_tokens=24), decoder.stream([3], max_tokens=24)
    made = [next(first).id]
    with pytest.raises(DecoderBusyError, match="use BatchDecoder"):
        next(second)
    with pytest.raises(DecoderBusyError):
        decoder.generate([3], max_tokens=2)
    made += [token.id for token in first]
    assert tuple(made) == plain([1, 2])
    assert decoder.generate([3], max_tokens=24).token_ids == plain([3])


def test_a_stream_that_was_never_advanced_has_nothing() -> None:
    decoder = SpeculativeDecoder(engine())
    waiting = decoder.stream([1], max_tokens=24)
    assert decoder.generate([3], max_tokens=24).token_ids == plain([3])
    assert tuple(token.id for token in waiting) == plain([1])


@pytest.mark.parametrize("how", ["close", "collect", "cycle", "error", "cancel"])
def test_an_abandoned_stream_frees_the_decoder(how: str) -> None:
    decoder = SpeculativeDecoder(engine(), drafter=NgramDrafter(), draft_tokens=3)
    asked = iter([False, True])
    options: dict[str, Any] = {"cancelled": lambda: next(asked)} if how == "cancel" else {}
    stream: Any = decoder.stream([1, 2], max_tokens=24, **options)
    next(stream)
    if how == "close":
        stream.close()
    elif how == "collect":
        del stream
    elif how == "cycle":
        held: list[Any] = [stream]
        held.append(held)
        del stream, held
        gc.collect()
    elif how == "error":
        with pytest.raises(KeyboardInterrupt):
            stream.throw(KeyboardInterrupt)
    else:
        assert list(stream) == []
    assert decoder.generate([3], max_tokens=24).token_ids == plain([3])


def test_two_decoders_over_one_engine_are_two_generations() -> None:
    target, drafter = engine(), NgramDrafter()
    one, other = SpeculativeDecoder(target), SpeculativeDecoder(target)
    first = one.stream([1, 2], max_tokens=24)
    made = [next(first).id]
    with pytest.raises(DecoderBusyError, match="FakeEngine"):
        other.generate([3])
    batch = BatchDecoder(target)
    batch.submit([3], max_tokens=24)
    with pytest.raises(DecoderBusyError):
        batch.step()
    assert tuple(made + [token.id for token in first]) == plain([1, 2])
    batch.step()
    with pytest.raises(DecoderBusyError):
        one.generate([1])
    while not batch.idle:
        batch.step()
    assert one.generate([3], max_tokens=24).token_ids == plain([3])
    first = SpeculativeDecoder(engine(), drafter=drafter, draft_tokens=2).stream([1])
    next(first)
    with pytest.raises(DecoderBusyError, match="NgramDrafter"):
        SpeculativeDecoder(engine(), drafter=drafter, draft_tokens=2).generate([1])


def test_a_batch_that_is_gone_leaves_its_engine() -> None:
    target = engine()
    batch = BatchDecoder(target)
    batch.submit([1], max_tokens=24)
    batch.step()
    del batch
    gc.collect()
    assert SpeculativeDecoder(target).generate([3], max_tokens=24).token_ids == plain([3])


class _Slow:
    """A row of logits that waits: the call is running for as long as the test wants."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self._row = language(3, vocab_size=VOCAB)

    def __call__(self, prefix: tuple[int, ...]) -> Any:
        self.entered.set()
        assert self.go_on.wait(20)
        return self._row(prefix)


@pytest.fixture
def slow() -> Iterator[
    tuple[_Slow, list[object], Callable[[Callable[[], object]], threading.Thread]]
]:
    """Such rows, what ran in other threads gave or raised, and what begins such a thread."""
    rows, found = _Slow(), []
    threads: list[threading.Thread] = []

    def begin(call: Callable[[], object]) -> threading.Thread:
        def run() -> None:
            try:
                found.append(call())
            except Exception as error:
                found.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        assert rows.entered.wait(20)
        return threads[-1]

    yield rows, found, begin
    rows.go_on.set()
    for thread in threads:
        thread.join(20)


def test_threads_that_share_a_decoder(slow: Any) -> None:
    rows, found, begin = slow
    decoder = SpeculativeDecoder(FakeEngine(rows, vocab_size=VOCAB))
    thread = begin(lambda: decoder.generate([1, 2], max_tokens=24).token_ids)
    with pytest.raises(DecoderBusyError):
        decoder.generate([3])
    rows.go_on.set()
    thread.join(20)
    assert found == [plain([1, 2])]


def test_a_batch_is_stepped_by_one_thread(slow: Any) -> None:
    rows, found, begin = slow
    batch = BatchDecoder(FakeEngine(rows, vocab_size=VOCAB))
    generation = batch.submit([1, 2], max_tokens=1)
    thread = begin(batch.step)
    for call in (batch.step, batch.prepare):
        with pytest.raises(DecoderBusyError, match="another thread"):
            call()
    rows.go_on.set()
    thread.join(20)
    assert [[token.id for token in made] for _, made in found[0]] == [[*plain([1, 2], 1)]]
    assert generation.finish_reason == "length"


def test_closing_waits_for_a_running_call_and_ends_the_rest(slow: Any) -> None:
    rows, found, begin = slow
    target = FakeEngine(rows, vocab_size=VOCAB)
    decoder = SpeculativeDecoder(target)
    generating = begin(lambda: decoder.generate([1, 2], max_tokens=24))
    closing = begin(decoder.close)
    assert closing.is_alive()
    rows.go_on.set()
    generating.join(20)
    closing.join(20)
    assert found.count(None) == 1  # close() gave nothing and raised nothing
    (error,) = (one for one in found if one is not None)
    assert isinstance(error, EngineError)
    assert "the decoder is closed" in str(error)


def test_a_closed_decoder_says_so() -> None:
    decoder = SpeculativeDecoder(engine())
    stream = decoder.stream([1])
    next(stream)
    decoder.close()
    decoder.close()
    with pytest.raises(EngineError, match="decoder is closed"):
        next(stream)
    for call in (decoder.generate, decoder.stream, decoder.rounds):
        with pytest.raises(EngineError, match="decoder is closed"):
            call([1])
    batch = BatchDecoder(engine())
    batch.submit([1])
    batch.close()
    for step in (batch.step, batch.prepare, lambda: batch.submit([1])):
        with pytest.raises(EngineError, match="decoder is closed"):
            step()


def test_a_callback_cannot_run_the_decoder_it_is_of() -> None:
    decoder = SpeculativeDecoder(engine())

    def again(history: Any, logits: Any) -> Any:
        decoder.close()
        return logits

    with pytest.raises(DecoderBusyError, match="callback"):
        decoder.generate([1], sampling=SamplingParams(processors=[again]))
    assert decoder.generate([1], max_tokens=24).token_ids == plain([1])
