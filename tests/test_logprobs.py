"""Log-probabilities, stop strings and echo, through the loop, whatever is drafted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import ModelDrafter, NgramDrafter, SamplingParams, SpeculativeDecoder, Tokenizer
from specplug.engines.fake import FakeEngine
from specplug.logprobs import log_softmax, token_logprobs
from specplug.sampling import distribution
from specplug.text import TextStream
from tests_support.tiny import byte_tokenizer

VOCAB = 260


def row(prefix: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(prefix[-2:]).normal(size=VOCAB).astype(np.float32)


def decoders(**options) -> dict[str, SpeculativeDecoder]:
    def other(prefix: tuple[int, ...]) -> np.ndarray:
        return row(prefix) + np.random.default_rng(prefix[-1:]).normal(size=VOCAB)

    return {
        "plain": SpeculativeDecoder(FakeEngine(row, vocab_size=VOCAB), **options),
        "ngram": SpeculativeDecoder(
            FakeEngine(row, vocab_size=VOCAB),
            drafter=NgramDrafter(prompt_lookup_min=1),
            **options,
        ),
        "draft": SpeculativeDecoder(
            FakeEngine(row, vocab_size=VOCAB, min_width=2),
            drafter=ModelDrafter(FakeEngine(other, vocab_size=VOCAB)),
            draft_tokens=5,
            **options,
        ),
    }


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("logprobs") / "tokenizer.json"
    byte_tokenizer().save(str(path))
    return Tokenizer(path)


@given(seed=st.integers(0, 2**32), size=st.integers(1, 50), data=st.data())
def test_they_are_torchs(seed: int, size: int, data: st.DataObject) -> None:
    logits = np.random.default_rng(seed).normal(size=size).round(1).astype(np.float32)
    token, top = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
    expected = torch.log_softmax(torch.from_numpy(logits).double(), 0)
    found = token_logprobs(log_softmax(logits), token, top)
    assert found.chosen == pytest.approx(expected[token].item(), abs=1e-12)
    ordered = sorted(range(size), key=lambda i: (-logits[i], i))[:top]
    assert [i for i, _ in found.top] == ordered
    assert [value for _, value in found.top] == pytest.approx(expected[ordered].tolist(), abs=1e-12)


@pytest.mark.parametrize("mode", ["raw", "processed"])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(repetition_penalty=1.5, banned_tokens=[7]),
        SamplingParams(temperature=0.7, top_k=20, seed=3),
        SamplingParams(temperature=1, top_p=0.8, acceptance="rejection", seed=3),
        SamplingParams(temperature=1, min_p=0.1, acceptance="block", seed=3),
    ],
)
def test_of_every_token_of_the_answer(params: SamplingParams, mode: str) -> None:
    prompt = [3, 1, 3, 1]
    for name, decoder in decoders().items():
        result = decoder.generate(
            prompt, max_tokens=30, sampling=params, logprobs=2, logprobs_mode=mode
        )
        assert len(result.tokens) == 30
        text = list(prompt)
        for token in result.tokens:
            logits = row(tuple(text))
            if mode == "raw":
                expected = log_softmax(logits)
            elif params.temperature:
                with np.errstate(divide="ignore"):
                    expected = np.log(distribution(logits, params).probabilities())
            else:
                seen = np.unique(text)
                if params.repetition_penalty != 1:
                    penalty = np.float32(params.repetition_penalty)
                    logits[seen] *= np.where(logits[seen] < 0, penalty, 1 / penalty)
                    logits[7] = -np.inf
                expected = log_softmax(logits)
            assert token.logprobs is not None
            assert token.logprobs.chosen == pytest.approx(expected[token.id], abs=1e-6), name
            best, second = np.argsort(-expected)[:2]
            assert [i for i, _ in token.logprobs.top] == [best, second]
            text.append(token.id)


def test_asking_changes_no_text() -> None:
    params = SamplingParams(temperature=1, seed=8)
    for decoder in decoders().values():
        runs = [
            decoder.generate([1, 2], max_tokens=30, sampling=params, logprobs=n).token_ids
            for n in (None, 0, VOCAB)
        ]
        assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("length", [1, 2, 64, 65, 130])
def test_echo(tokenizer: Tokenizer, length: int) -> None:
    prompt = np.random.default_rng(length).integers(0, 128, length).tolist()
    for decoder in decoders(tokenizer=tokenizer).values():
        alone = decoder.generate(prompt, max_tokens=12, stop="zz")
        echoed = decoder.generate(prompt, max_tokens=12, stop="zz", echo=True, logprobs=1)
        assert echoed.token_ids == (*prompt, *alone.token_ids)
        assert echoed.text == tokenizer.decode(echoed.token_ids)
        assert echoed.stats.new_tokens == 12
        assert not any(token.from_draft for token in echoed.tokens[:length])
        first, *others = echoed.tokens[:length]
        assert first.logprobs is None
        for i, token in enumerate(others, start=1):
            expected = log_softmax(row(tuple(prompt[:i])))
            assert token.logprobs.chosen == pytest.approx(expected[token.id], abs=1e-9)
            assert token.logprobs.top[0][0] == expected.argmax()


# --- stop strings ---------------------------------------------------------------------------------

LETTERS = st.text("abc", max_size=30)
STOPS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3)


def cut(text: str, stops: list[str]) -> str:
    """Up to the stop string that comes to its end first; of those that do together, the longest."""
    for end in range(len(text) + 1):
        ended = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if ended:
            return text[: end - max(ended)]
    return text


@given(text=LETTERS, stops=STOPS)
def test_a_stop_string_ends_the_text_before_it(
    tokenizer: Tokenizer, text: str, stops: list[str]
) -> None:
    stream = TextStream(tokenizer, stops)
    tokens = tokenizer.encode(text)
    shown = ""
    for i, token in enumerate(tokens):
        shown += stream.push(token, last=i == len(tokens) - 1)
        assert cut(text, stops).startswith(shown)  # nothing is ever shown that has to go
        if stream.stopped:
            break
    assert shown == cut(text, stops)
    assert stream.stopped == (shown != text)


@settings(deadline=None)
@given(
    seed=st.integers(0, 500), stops=st.lists(st.text("abcd", min_size=1, max_size=3), min_size=1)
)
def test_the_answer_stops_there_for_every_drafter(
    tokenizer: Tokenizer, seed: int, stops: list[str]
) -> None:
    letters = tokenizer.encode("abcd")
    bias = dict.fromkeys(letters, 8.0)
    params = SamplingParams(temperature=1, seed=seed, logit_bias=bias)
    found = {}
    for name, decoder in decoders(tokenizer=tokenizer).items():
        whole = decoder.generate([5], max_tokens=40, sampling=params)
        result = decoder.generate([5], max_tokens=40, sampling=params, stop=stops)
        assert result.text == cut(whole.text, stops)
        assert result.token_ids == whole.token_ids[: len(result.token_ids)]
        stopped = result.text != whole.text
        assert result.finish_reason == ("stop" if stopped else "length")
        assert result.stats.new_tokens == len(result.tokens)
        found[name] = result.token_ids
    assert len(set(found.values())) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": ""}, "stop ''"),
        ({"stop": ["a", ""]}, "stop ''"),
        ({"logprobs": -1}, r"logprobs -1: it must be in \[0, 260\]"),
        ({"logprobs": 261}, "logprobs 261"),
        ({"logprobs_mode": "both"}, "logprobs_mode 'both'"),
        ({"sample": -1}, "sample -1"),
    ],
)
def test_bad_options_are_refused_before_any_work(
    tokenizer: Tokenizer, options: dict, message: str
) -> None:
    decoder = decoders(tokenizer=tokenizer)["plain"]
    with pytest.raises(ValueError, match=message):
        decoder.generate([1], **options)
    assert not decoder.target.steps


def test_stop_strings_need_a_tokenizer() -> None:
    with pytest.raises(ValueError, match="stop 'x': stop strings need a tokenizer"):
        decoders()["plain"].generate([1], stop="x")


def test_logprobs_of_a_bundle_are_the_sources(tiny_source: Path, tiny_bundle: Path) -> None:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_source).eval()
    with SpeculativeDecoder.from_bundle(tiny_bundle, drafter="draft") as decoder:
        result = decoder.generate("abc", max_tokens=20, echo=True, logprobs=3)
    tokens = torch.tensor([result.token_ids])
    with torch.no_grad():
        expected = torch.log_softmax(model(tokens).logits[0], dim=1)
    for i, token in enumerate(result.tokens[1:]):
        assert token.logprobs.chosen == pytest.approx(expected[i, token.id].item(), abs=1e-4)
