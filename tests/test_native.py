"""The C++ runtime gives what the Python package gives: built, installed and driven from here."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from specplug import History, SpeculativeDecoder
from specplug.export import export_bundle
from tests_support import native as support
from tests_support.families import NAMED
from tests_support.heads import LAYERS, WRITTEN
from tests_support.native import Native, NativeError, in_native, in_python
from tests_support.tiny import byte_tokenizer, write_checkpoint

GOLDEN = Path(__file__).parent / "golden" / "native.json"


@pytest.fixture(scope="session")
def opened_native(native_build: None, tiny_bundles: dict[str, Path]) -> Iterator[Native]:
    """The tiny fp32 bundle with its draft; nothing is remembered between requests."""
    with Native(tiny_bundles["fp32"], load_draft=True, history_tokens=0) as native:
        yield native


def compared(bundle: Path, count: int, seed: int, **options: object) -> None:
    random = np.random.default_rng(seed)
    drafters = support.drafters_of(bundle)
    with Native(bundle, load_draft="draft" in drafters, history_tokens=0, **options) as native:
        for _ in range(count):
            request = support.random_request(random, native.info["vocab_size"], drafters)
            assert in_native(native, request) == in_python(bundle, request), request


@pytest.mark.parametrize("name", ["fp32", "w8a8", "int4", "standard-fp32", "standard-int8"])
def test_random_requests(native_build: None, tiny_bundles: dict[str, Path], name: str) -> None:
    """Differential fuzzing: tokens, and what every round drafted and accepted."""
    compared(tiny_bundles[name], count=60, seed=len(name))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "dialect"), [("qwen3", "ort"), ("gemma2", "standard"), ("gpt2", "ort")]
)
def test_random_bundles(native_build: None, tmp_path: Path, model_type: str, dialect: str) -> None:
    """Other architectures: normed heads, sliding windows, learned positions."""
    seed = sum(map(ord, model_type))
    more = {"gemma2": {"sliding_window": 8}, "gpt2": NAMED["gpt2"]}.get(model_type, {})
    source = write_checkpoint(tmp_path / "source", seed=seed, model_type=model_type, **more)
    export_bundle(source, tmp_path / "bundle", precision="fp32", dialect=dialect)
    compared(tmp_path / "bundle", count=25, seed=seed)


def test_golden(opened_native: Native, tiny_bundle: Path) -> None:
    """What Python once wrote down, both still give; ``tests/golden/make_native.py`` wrote it."""
    for case in json.loads(GOLDEN.read_text()):
        request, expected = case["request"], case["expected"]
        assert in_native(opened_native, request) == expected, request
        restored = {
            name: {int(k): v for k, v in value.items()} if isinstance(value, dict) else value
            for name, value in request.items()
        }
        assert in_python(tiny_bundle, restored) == expected, request


def test_inexact_trees(native_build: None, tiny_bundles: dict[str, Path]) -> None:
    """Where trees change scores both change them alike."""
    bundle = tiny_bundles["int4"]
    random = np.random.default_rng(5)
    with Native(bundle, history_tokens=0) as native:
        for _ in range(20):
            request = support.random_request(random, native.info["vocab_size"], ["auto", "suffix"])
            request["inexact_trees"] = True
            assert in_native(native, request) == in_python(bundle, request), request


def test_history_is_shared_and_apart_by_tenant(native_build: None, tiny_bundle: Path) -> None:
    """What was asked before is drafted from again, by other decoders over the model, too."""
    random = np.random.default_rng(2)
    history = History(300)
    with Native(tiny_bundle, history_tokens=300) as native:
        for number in range(24):
            request = support.random_request(random, native.info["vocab_size"], ["suffix"])
            request |= {"tenant": "ab"[number % 2], "max_tokens": 30, "draft_tokens": 6}
            if number % 3:
                request["prompt"] = [9, 8, 7, 6, 5, 4]
            expected = in_python(tiny_bundle, request, history)
            assert in_native(native, request) == expected, request


def test_a_draft_after_which_nothing_may_come(opened_native: Native) -> None:
    """It is left: the target ends before it gets there."""
    used = [token for token in range(opened_native.info["vocab_size"]) if token not in (5, 90, 200)]
    request = {"prompt": used, "drafter": "none", "draft_tokens": 0, "no_repeat_ngram": 1}
    plain = opened_native.ask("generate", fresh=True, max_tokens=3, stop_token_ids=[], **request)
    for drafter in ("draft", "auto"):
        changed = request | {"drafter": drafter, "draft_tokens": 6, "max_tokens": 20}
        found = opened_native.ask(
            "generate", fresh=True, stop_token_ids=[plain["tokens"][1]], **changed
        )
        assert found["tokens"] == plain["tokens"][:2]


def test_an_accepted_stop_token_ends_the_answer_whatever_may_follow_it(
    opened_native: Native,
) -> None:
    """The stop token 11 is looked up; after it, all is banned or has come in four tokens before."""
    request = {
        "prompt": [5, 10, 11, 11, 6, 5, 10, 11, 10, 7, 5],
        "forced_tokens": {0: 10},
        "banned_tokens": [*range(10), *range(12, opened_native.info["vocab_size"])],
        "logit_bias": {11: 1000.0},
        "no_repeat_ngram": 4,
        "stop_token_ids": [11],
        "max_tokens": 9,
    }
    for drafter, draft_tokens in (("none", 0), ("ngram", 4)):
        changed = request | {"drafter": drafter, "draft_tokens": draft_tokens}
        found = opened_native.ask("generate", fresh=True, **changed)
        assert found["tokens"] == [10, 11]
    assert found["stats"]["accepted"] == 1


def test_long_prompts_and_the_end_of_the_context(opened_native: Native, tiny_bundle: Path) -> None:
    """Prompts in pieces, caches that grow, and rounds that are cut short."""
    limit = opened_native.info["context_limit"]
    random = np.random.default_rng(3)
    for length in (255, 256, 257, 511, 512, 513, 700, limit - 3, limit - 1):
        prompt = random.integers(0, opened_native.info["vocab_size"], size=length).tolist()
        request = {"prompt": prompt, "drafter": "auto", "draft_tokens": 5, "max_tokens": 20}
        expected = in_python(tiny_bundle, request)
        assert in_native(opened_native, request) == expected, length
    assert expected["finish_reason"] == "context"


def test_automatic_length_changes_no_text(opened_native: Native, tiny_bundle: Path) -> None:
    random = np.random.default_rng(4)
    for _ in range(12):
        request = support.random_request(random, opened_native.info["vocab_size"], ["auto"])
        request["draft_tokens"] = -1
        expected = in_python(tiny_bundle, request | {"drafter": "none", "draft_tokens": 0})
        assert in_native(opened_native, request)["tokens"] == expected["tokens"]


def test_decoders_are_kept_between_requests(opened_native: Native, tiny_bundle: Path) -> None:
    """A cache with another request's entries, and learnt chances, change no text."""
    random = np.random.default_rng(6)
    for _ in range(20):
        request = support.random_request(random, opened_native.info["vocab_size"], ["auto"])
        request["draft_tokens"] = 7
        found = opened_native.ask("generate", decoder="kept", **request)["tokens"]
        assert found == in_python(tiny_bundle, request)["tokens"]


def test_runs_are_the_tokens(opened_native: Native) -> None:
    """Callbacks tell every token once, and which of them were drafted."""
    request = {"prompt": [1, 2, 3, 1, 2, 3, 1, 2], "drafter": "auto", "draft_tokens": 4}
    found = opened_native.ask("generate", fresh=True, max_tokens=40, **request)
    assert sum(count for count, _ in found["runs"]) == len(found["tokens"])
    assert sum(accepted for _, accepted in found["runs"]) == found["stats"]["accepted"]
    assert len(found["runs"]) == found["stats"]["rounds"] + 1


def test_cancelling_takes_effect_within_a_round(opened_native: Native) -> None:
    request = {"prompt": [1, 2, 3], "drafter": "none", "draft_tokens": 0, "max_tokens": 40}
    whole = opened_native.ask("generate", fresh=True, stop_token_ids=[], **request)["tokens"]
    found = opened_native.ask("generate", fresh=True, cancel_after=3, stop_token_ids=[], **request)
    assert found["stats"]["finish_reason"] == "cancelled"
    assert found["tokens"] == whole[:3]
    again = opened_native.ask("generate", stop_token_ids=[], **request)
    assert again["tokens"] == whole


def test_stop_tokens_of_ones_own(opened_native: Native) -> None:
    request = {"prompt": [1, 2, 3], "drafter": "auto", "draft_tokens": 4, "max_tokens": 40}
    whole = opened_native.ask("generate", fresh=True, stop_token_ids=[], **request)["tokens"]
    found = opened_native.ask("generate", fresh=True, stop_token_ids=[whole[7]], **request)
    assert found["tokens"] == whole[: whole.index(whole[7]) + 1]
    assert found["stats"]["finish_reason"] == "stop"


def test_stop_tokens_without_a_tokenizer(
    native_build: None, tiny_bundle: Path, tmp_path: Path
) -> None:
    """They are the manifest's, in both languages."""
    copy = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    request = {"prompt": [1, 2, 3], "drafter": "none", "max_tokens": 40}
    with Native(tiny_bundle) as native:
        whole = native.ask("generate", stop_token_ids=[], **request)["tokens"]
    manifest = json.loads((copy / "specplug.json").read_text())
    manifest |= {"tokenizer": None, "stop_token_ids": [whole[7]]}
    (copy / "specplug.json").write_text(json.dumps(manifest))
    with Native(copy) as native:
        found = native.ask("generate", **request)["tokens"]
    assert found == whole[: whole.index(whole[7]) + 1]
    with SpeculativeDecoder.from_bundle(copy, drafter="none") as decoder:
        assert decoder.stop_token_ids == {whole[7]}


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"prompt": []}, support.INVALID, "empty"),
        ({"prompt": [99_999]}, support.INVALID, "99999"),
        ({"prompt": [-1]}, support.INVALID, "-1"),
        ({"prompt": [1] * 1200}, support.CONTEXT, "1200"),
        ({"max_tokens": 0}, support.INVALID, "max_tokens"),
        ({"temperature": -1}, support.INVALID, "temperature"),
        ({"top_p": 0.0}, support.INVALID, "top_p"),
        ({"top_k": -3}, support.INVALID, "top_k"),
        ({"repetition_penalty": 0}, support.INVALID, "repetition_penalty"),
        ({"banned_tokens": [-5]}, support.INVALID, "banned_tokens"),
        ({"prediction": [10**6]}, support.INVALID, "1000000"),
        ({"stop": [""]}, support.INVALID, "stop"),
        ({"drafter": "magic"}, support.INVALID, "magic"),
        ({"draft_tokens": 256}, support.INVALID, "256"),
        ({"temperature": 1, "acceptance": "rejection"}, support.UNSUPPORTED, "Python"),
        ({"banned_tokens": list(range(260))}, support.ENGINE, "no token is left"),
    ],
)
def test_what_cannot_be_is_refused(
    opened_native: Native, change: dict[str, object], status: int, words: str
) -> None:
    request = {"prompt": [1, 2], "drafter": "none", "draft_tokens": 0, "max_tokens": 4} | change
    with pytest.raises(NativeError, match=words) as caught:
        opened_native.ask("generate", fresh=True, **request)
    assert caught.value.status == status


def test_drafts_that_are_not_there(native_build: None, tiny_bundles: dict[str, Path]) -> None:
    with Native() as native:
        with pytest.raises(NativeError, match="no draft model"):
            native.ask("open", path=str(tiny_bundles["w8a8"]), load_draft=True)
        native.ask("open", path=str(tiny_bundles["fp32"]))
        with pytest.raises(NativeError, match="load_draft"):
            native.ask("generate", prompt=[1], drafter="draft")


@pytest.mark.parametrize("name", ["llama", "dflash"])
def test_a_learned_head_is_left_alone(name: str, native_build: None, tmp_path: Path) -> None:
    """Its bundle opens without its draft; the text is Python's with it."""
    target = write_checkpoint(tmp_path / "tiny-target", num_hidden_layers=LAYERS)
    bundle = tmp_path / "headed.bundle"
    export_bundle(target, bundle, precision="fp32", draft=WRITTEN / name)
    with Native() as native, pytest.raises(NativeError, match="is a learned head") as raised:
        native.ask("open", path=str(bundle), load_draft=True)
    assert raised.value.status == support.UNSUPPORTED
    request = {"prompt": [1, 2, 3], "draft_tokens": 4, "max_tokens": 20, "seed": 1}
    wanted = in_python(bundle, request | {"drafter": "head"})["tokens"]
    with Native(bundle) as native:
        assert in_native(native, request | {"drafter": "auto"})["tokens"] == wanted


def test_a_draft_with_other_tokens_is_left_alone(
    native_build: None, tiny_source: Path, tmp_path: Path
) -> None:
    """Its bundle opens without its draft, whose tokenizer's hash is checked all the same."""
    draft = write_checkpoint(tmp_path / "other", tokenizer=byte_tokenizer(("<|extra|>",)))
    bundle = tmp_path / "universal.bundle"
    export_bundle(tiny_source, bundle, precision="fp32", draft=draft)
    with Native() as native, pytest.raises(NativeError, match="a tokenizer of its own") as raised:
        native.ask("open", path=str(bundle), load_draft=True)
    assert raised.value.status == support.UNSUPPORTED
    request = {"prompt": [1, 2, 3], "draft_tokens": 4, "max_tokens": 20, "seed": 1}
    wanted = in_python(bundle, request | {"drafter": "universal"})["tokens"]
    with Native(bundle) as native:
        assert in_native(native, request | {"drafter": "auto"})["tokens"] == wanted
    tokenizer = bundle / "draft" / "tokenizer.json"
    tokenizer.write_bytes(tokenizer.read_bytes().replace(b"extra", b"other"))
    with Native() as native, pytest.raises(NativeError, match=r"draft/tokenizer\.json was changed"):
        native.ask("open", path=str(bundle))


def test_foreign_dialects_are_named(native_build: None, foreign_bundles: dict[str, Path]) -> None:
    with Native() as native, pytest.raises(NativeError, match="concat") as caught:
        native.ask("open", path=str(foreign_bundles["optimum"]))
    assert caught.value.status == support.UNSUPPORTED


def test_providers_are_handed_on(native_build: None, tiny_bundle: Path) -> None:
    with Native() as native, pytest.raises(NativeError, match="CUDA") as caught:
        native.ask("open", path=str(tiny_bundle), providers=["CUDAExecutionProvider"])
    assert caught.value.status == support.ENGINE


def test_damaged_bundles_are_named(native_build: None, tiny_bundle: Path, tmp_path: Path) -> None:
    """Whatever byte is changed, wherever a file ends: a status, and what is wrong."""
    random = np.random.default_rng(7)
    names = ["specplug.json", "tokenizer.json", "target/model.onnx", "target/model.onnx.data"]
    with Native() as native:
        for number in range(40):
            copy = tmp_path / str(number)
            shutil.copytree(tiny_bundle, copy)
            path = copy / names[number % 4]
            content = bytearray(path.read_bytes())
            if number % 8 < 4:
                at = int(random.integers(len(content)))
                content[at] ^= int(random.integers(1, 256))
                path.write_bytes(content)
            elif number % 3:
                path.write_bytes(content[: int(random.integers(len(content)))])
            else:
                path.unlink()
            if number % 4 or number % 8 >= 4:
                with pytest.raises(NativeError, match=names[number % 4]) as caught:
                    native.ask("open", path=str(copy))
                assert caught.value.status == support.BUNDLE
            else:  # of the manifest a letter may say nothing
                with contextlib.suppress(NativeError):
                    native.ask("open", path=str(copy))
        with pytest.raises(NativeError, match="not a bundle"):
            native.ask("open", path=str(tmp_path / "nowhere"))


def test_many_threads_share_the_weights(native_build: None, tiny_bundle: Path) -> None:
    """8 threads, 200 requests, one session: all the same answer."""
    request = {"prompt": [1, 2, 3, 1, 2, 3, 1, 2], "drafter": "auto", "draft_tokens": 4}
    with Native(tiny_bundle, load_draft=True, threads=1) as native:
        different = native.ask(
            "threads", threads=8, requests=25, max_tokens=16, temperature=0.8, seed=3, **request
        )
    assert different == [0] * 8


@pytest.mark.weights
def test_real_weights(native_build: None, real_bundle: Path) -> None:
    """Quoting and free text, greedy and sampled."""
    prompt = [504, 1234, 2341, 23, 42, 198] * 4 + [504, 1234]
    with Native(real_bundle, history_tokens=0) as native:
        for sampling in (support.SAMPLED[0], support.SAMPLED[1] | {"seed": 11}, support.SAMPLED[6]):
            for drafter in ("none", "auto"):
                request = {"prompt": prompt, "drafter": drafter, **sampling}
                request["draft_tokens"] = 8 if drafter == "auto" else 0
                request["max_tokens"] = 48
                assert in_native(native, request) == in_python(real_bundle, request), request
