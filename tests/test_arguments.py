"""Arguments of every public call: wrong ones are refused before any work, and by no other error."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import (
    BatchDecoder,
    Budget,
    Bundle,
    BundleError,
    EngineOptions,
    EngineSpec,
    ExportError,
    History,
    ModelDrafter,
    NgramDrafter,
    SamplingParams,
    SpecplugError,
    SpeculativeDecoder,
    engines,
)
from specplug.arguments import check_value, describe
from specplug.controller import CallCosts, FixedLength, MeasuredLength
from specplug.distilling.answers import AnswerOptions
from specplug.distilling.distill import DistillOptions, Told, distill
from specplug.distilling.options import TrainingOptions
from specplug.drafters import NgramSource, TreeDrafter
from specplug.engines.fake import FakeEngine
from specplug.export import export_bundle, plan_export
from specplug.export.from_onnx import export_onnx
from specplug.generation_options import CallOptions
from specplug.integrations.transformers import speculate
from specplug.opening import _ENGINES_OWN, make_drafter, open_parts
from specplug.prefixes import PrefixCache
from specplug.prompts import PromptOptions
from specplug.serving.settings import ServerSettings
from specplug.tuning import tune
from specplug.verification import VerifyOptions, verify
from tests_support.batching import drain
from tests_support.languages import language

VOCAB = 8
NOWHERE = "/nowhere/at/all"


def engine(rows: int = 1) -> FakeEngine:
    row = language(1, vocab_size=VOCAB)
    return FakeEngine(row, vocab_size=VOCAB, max_batch=rows, max_length=32)


class Odd:
    """Nothing that any argument takes."""

    def __repr__(self) -> str:
        raise RuntimeError("not even its name")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("nor to be compared")

    __hash__ = object.__hash__


WRONG = st.one_of(
    st.sampled_from(
        [
            None, True, -1, 0, 5, 2**70, -(2**70), 1.5, float("nan"), float("inf"), "", "hot", "5",
            b"5", [], [None], ["x"], [1.5], [True], [-1], [[1]], {}, {"a": 1}, {1: "x"}, {-1: 1.0},
            (), {1, 2}, range(3), iter([1]), Odd(), Odd, print, Path(NOWHERE), np.int64(-3),
            np.float32("nan"), np.zeros(3), np.zeros((2, 2)), np.array(["x"]), np.array([1, 2]),
            SamplingParams(), NgramDrafter(), 1 + 2j, object(), ..., NotImplemented,
        ]
    ),
    st.integers(),
    st.text(max_size=4),
    st.floats(),
    st.lists(st.integers(-2, 9) | st.text(max_size=2), max_size=3),
    st.dictionaries(st.integers(-2, 9) | st.text(max_size=2), st.floats(), max_size=2),
)  # fmt: skip


def names_of(call: Callable[..., Any]) -> list[str]:
    """The arguments that a call takes by name, those of an unpacked TypedDict among them."""
    names: list[str] = []
    for name, one in inspect.signature(call).parameters.items():
        if one.kind is one.VAR_KEYWORD:
            (unpacked,) = get_type_hints(call)[name].__args__
            names += get_type_hints(unpacked)
        elif one.kind is not one.VAR_POSITIONAL and name != "self":
            names.append(name)
    return names


DECODED = ("generate", "stream", "rounds")
OPTIONS = (
    SamplingParams, EngineOptions, ServerSettings, VerifyOptions, DistillOptions, AnswerOptions,
    TrainingOptions, Told,
)  # fmt: skip
CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    # name: (the call, what it needs beside the argument in question)
    **{one.__name__: (one, {}) for one in OPTIONS},
    "EngineSpec": (EngineSpec, {"name": "x", "vocab_size": 4, "max_length": 9}),
    "Budget": (Budget, {"most": 3}),
    "History": (History, {}),
    "NgramDrafter": (NgramDrafter, {}),
    "NgramSource": (NgramSource, {}),
    "ModelDrafter": (ModelDrafter, {"engine": engine()}),
    "TreeDrafter": (TreeDrafter, {"name": "x", "sources": []}),
    "FixedLength": (FixedLength, {"draft_tokens": 1}),
    "CallCosts": (CallCosts, {"measured": {1: 0.1}}),
    "MeasuredLength": (MeasuredLength, {"costs": CallCosts({1: 0.1})}),
    "PrefixCache": (PrefixCache, {}),
    "make_drafter": (make_drafter, {"name": "ngram"}),
    "speculate": (speculate, {}),
    "register": (engines.register, {"name": "x", "factory": print}),
    "Bundle.open": (Bundle.open, {"path": NOWHERE}),
    "tune": (tune, {"bundle": None, "engine": engine(), "threads": None}),
    "verify": (
        lambda **given: next(verify(**given)),
        {"path": NOWHERE, "options": VerifyOptions(), "report": lambda name, share: None},
    ),
    "export_bundle": (export_bundle, {"source": NOWHERE, "output": f"{NOWHERE}/b.bundle"}),
    "plan_export": (plan_export, {"source": NOWHERE, "output": f"{NOWHERE}/b.bundle"}),
    "export_onnx": (export_onnx, {"folder": NOWHERE, "output": f"{NOWHERE}/b.bundle"}),
    "distill": (distill, {"source": NOWHERE, "prompts": [], "output": f"{NOWHERE}/head"}),
    "from_bundle": (SpeculativeDecoder.from_bundle, {"path": NOWHERE}),
    "batch from_bundle": (BatchDecoder.from_bundle, {"path": NOWHERE}),
    "open_parts": (open_parts, {"bundle": None, "drafter": "none"}),
}
ARGUMENTS = {
    "verify": names_of(verify),
    "register": ["name", "factory"],
    "from_bundle": [
        "path", "drafter", "draft_tokens", "inexact_trees", *open_parts.__kwdefaults__,
        *(one.name for one in fields(EngineOptions) if one.name not in _ENGINES_OWN),
    ],
    "open_parts": [*open_parts.__kwdefaults__, "bundle", "drafter"],
    "make_drafter": ["name", "draft", "history", "continuations", "prompt_lookup_min"],
}  # fmt: skip
ARGUMENTS["batch from_bundle"] = [*ARGUMENTS["from_bundle"], "max_batch", "prefix_cache_bytes"]


def pairs() -> Iterator[str]:
    for name in CALLS:
        for argument in dict.fromkeys(ARGUMENTS.get(name) or names_of(CALLS[name][0])):
            yield f"{name}({argument})"


def refusal(call: Callable[[], Any]) -> str:
    """What a call says is wrong, shortly; nothing if it works. Any other error is the test's."""
    try:
        call()
    except (ValueError, SpecplugError) as error:
        told = str(error)
    else:
        return ""
    assert told
    assert len(told) < 1500
    assert len(told.splitlines()) <= 2
    return told


@pytest.mark.parametrize("named", [*pairs()])
@settings(deadline=None, max_examples=12)
@given(value=WRONG)
def test_one_wrong_argument(named: str, value: Any) -> None:
    name, argument = named.removesuffix(")").split("(")
    call, needed = CALLS[name]
    refusal(lambda: call(**{**needed, argument: value}))


@pytest.mark.parametrize("argument", [*get_type_hints(CallOptions), "prompt"])
@settings(deadline=None, max_examples=20)
@given(value=WRONG)
def test_one_wrong_option_of_a_generation(argument: str, value: Any) -> None:
    """What is refused has done nothing, and where one call refuses it, all do."""
    told: set[str] = set()
    for name in (*DECODED, "submit"):
        if name == "rounds" and argument in PromptOptions.__annotations__:
            continue
        target = engine()
        decoder: Any = (BatchDecoder if name == "submit" else SpeculativeDecoder)(target)
        given: dict[str, Any] = {"prompt": [1, 2], "max_tokens": 3, argument: value}
        said = refusal(lambda: getattr(decoder, name)(**given))  # noqa: B023
        if name != "rounds" or argument != "prompt":  # it says that it takes token ids alone
            told.add(said)
        assert not said or not target.steps, "it began"
    assert len(told) == 1


@pytest.mark.parametrize("kind", [SpeculativeDecoder, BatchDecoder])
@pytest.mark.parametrize("argument", names_of(SpeculativeDecoder.__init__))
@settings(deadline=None, max_examples=12)
@given(value=WRONG)
def test_one_wrong_argument_of_a_decoder(kind: Any, argument: str, value: Any) -> None:
    target = engine()
    refusal(lambda: kind(**{"target": target, argument: value}))
    assert not target.steps


@settings(deadline=None, max_examples=60)
@given(name=st.sampled_from([*CALLS]), keyword=st.text("abcdefghijklmnop_", min_size=1, max_size=9))
def test_an_unknown_keyword_is_a_type_error(name: str, keyword: str) -> None:
    call, needed = CALLS[name]
    if name == "verify" or keyword in (ARGUMENTS.get(name) or names_of(call)):
        return
    with pytest.raises(TypeError, match=keyword):
        call(**needed, **{keyword: 1})


# --- numbers of every kind, and what is said --------------------------------------------------


def test_numpys_numbers_are_numbers() -> None:
    decoder = SpeculativeDecoder(engine(), draft_tokens=np.int64(0))  # type: ignore[arg-type]
    plain = SpeculativeDecoder(engine()).generate([1, 2], max_tokens=5)
    sampling = SamplingParams(temperature=np.float32(0), top_k=np.int32(3), seed=np.uint64(2**63))
    for prompt in ([1, 2], (1, 2), np.array([1, 2]), [np.int64(1), np.int32(2)], range(1, 3)):
        found = decoder.generate(prompt, max_tokens=np.int64(5), sampling=sampling)
        assert found.token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_tokens": "5"}, "max_tokens '5': it must be a whole number"),
        ({"max_tokens": True}, "max_tokens True: it must be a whole number"),
        ({"max_tokens": 2.0}, "max_tokens 2.0: it must be a whole number"),
        ({"stop": 5}, "stop 5: it must be text or a sequence of text"),
        ({"stop": ["a", 5]}, r"stop\[1\] 5: it must be text"),
        ({"sampling": {"temperature": 1.0}}, r"sampling \{'temperature': 1.0\}: .* SamplingParams"),
        ({"logprobs": True}, "logprobs True: it must be a whole number or None"),
        ({"logprobs_mode": "cooked"}, "logprobs_mode 'cooked': it must be raw or processed"),
        ({"echo": "no"}, "echo 'no': it must be True or False"),
        ({"cancelled": True}, "cancelled True: it must be callable"),
        ({"tenant": 5}, "tenant 5: it must be text"),
        ({"prompt": 5}, "the prompt 5 is a int"),
        ({"prompt": b"hello"}, "the prompt b'hello' is a bytes"),
        ({"prompt": [True, False]}, r"the prompt \[True, False\] is a list"),
        ({"prompt": ["a", "b"]}, "is several texts: .*BatchDecoder"),
        ({"prompt": {1, 2}}, "is a set"),
        ({"prompt": np.array([[1, 2]])}, "is a ndarray"),
        ({"prompt": [[1, 2]]}, r"the prompt \[\[1, 2\]\] is a list"),
    ],
)
def test_what_is_said(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SpeculativeDecoder(engine()).generate(**{"prompt": [1], **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": "hot"}, "temperature 'hot': it must be a number"),
        ({"temperature": True}, "temperature True: it must be a number"),
        ({"logit_bias": {"5": 1.0}}, "logit_bias: key '5': it must be a whole number"),
        ({"logit_bias": {5: "1"}}, r"logit_bias\[5\] '1': it must be a number"),
        ({"banned_tokens": "5"}, "banned_tokens '5': it must be a sequence of a whole number"),
        ({"processors": [5]}, r"processors\[0\] 5: it must be callable"),
        ({"seed": 1.5}, "seed 1.5: it must be a whole number"),
    ],
)
def test_what_is_said_of_sampling(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        SamplingParams(**options)


def test_a_processor_keeps_its_rows_shape() -> None:
    for made in (np.zeros(VOCAB - 1), np.zeros((1, VOCAB)), 0.0, None, "x" * VOCAB):
        sampling = SamplingParams(processors=[lambda history, logits: made])  # noqa: B023
        with pytest.raises(ValueError, match=r"processor .*it must keep their shape"):
            SpeculativeDecoder(engine()).generate([1], sampling=sampling)

    def write(history: Any, logits: Any) -> Any:
        history[:] = 0
        return logits

    with pytest.raises(ValueError, match="read-only"):
        SpeculativeDecoder(engine()).generate([1], sampling=SamplingParams(processors=[write]))


def test_a_batch_takes_text_as_a_decoder_does(tiny_bundles: dict[str, Path]) -> None:
    talk = [{"role": "user", "content": "hello"}]
    with (
        BatchDecoder.from_bundle(tiny_bundles["w8a8"], drafter="none", max_batch=2) as many,
        SpeculativeDecoder.from_bundle(tiny_bundles["w8a8"], drafter="none") as one,
    ):
        asked: list[tuple[Any, dict[str, Any]]] = [
            ("hello", {"chat": False}), ("hello", {"chat": True}), ("hello", {}), (talk, {}),
            (one.encode("hello", chat=False), {}),
        ]  # fmt: skip
        made = [many.submit(prompt, max_tokens=6, **options) for prompt, options in asked]
        found = drain(many)
        for generation, (prompt, options) in zip(made, asked, strict=True):
            alone = one.generate(prompt, max_tokens=6, **options).token_ids
            assert tuple(token.id for token in found[generation]) == alone
        assert made[0].prompt == made[4].prompt != made[1].prompt == made[2].prompt


# --- sources, bundles and places --------------------------------------------------------------


def test_bundles_and_checkpoints_are_not_taken_for_one_another(
    tiny_bundles: dict[str, Path], tiny_source: Path, tmp_path: Path
) -> None:
    bundle = tiny_bundles["w8a8"]
    for made in (export_bundle, plan_export, export_onnx):
        with pytest.raises(ExportError, match="is a bundle, which was exported already"):
            made(bundle, tmp_path / "b.bundle")
    with pytest.raises(ExportError, match="is a bundle"):
        distill(bundle, [], tmp_path / "head")
    model = tmp_path / "model.gguf"
    model.touch()
    for source in (tiny_source, model):
        with pytest.raises(BundleError, match=f"is not a bundle but a checkpoint: .*{source.name}"):
            SpeculativeDecoder.from_bundle(source)


def test_a_place_that_cannot_be_written_is_found_first(tmp_path: Path, tiny_source: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    told: list[str] = []
    for made in (export_bundle, export_onnx):
        with pytest.raises(ExportError, match="is not a folder: make it first"):
            made(tiny_source, file / "b.bundle", report=told.append)
    with pytest.raises(ExportError, match="is not a folder: make it first"):
        distill(tiny_source, [], file / "head")
    with pytest.raises(ExportError, match="is not a folder: make it first"):
        distill(tiny_source, [], tmp_path / "head", save_to=file / "answers.jsonl")
    assert not told


def test_annotations_are_told_in_words() -> None:
    assert describe(int | None) == "a whole number or None"
    with pytest.raises(ValueError, match=r"^x <Odd instance at .*>: it must be a whole number$"):
        check_value("x", Odd(), int)
