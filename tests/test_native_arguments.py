"""C and Python take the same arguments and refuse the same, with the same words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from specplug import SamplingParams, SpecplugError, SpeculativeDecoder
from tests_support import native as support
from tests_support.arguments import CASES, Case
from tests_support.c_interface import PROMPT, SIZE_MAX, ask

_SAMPLING = tuple(SamplingParams.__dataclass_fields__)


@pytest.fixture(scope="module")
def opened(tiny_bundles: dict[str, Path]) -> Iterator[SpeculativeDecoder]:
    with SpeculativeDecoder.from_bundle(tiny_bundles["fp32"], drafter="ngram") as decoder:
        yield decoder


@pytest.fixture(scope="module")
def from_c(native_build: None, tiny_bundles: dict[str, Path]) -> dict[int, tuple[int, str]]:
    """Status and message of each case."""
    calls = [
        ["call", case.kind, {case.argument: case.value, **dict(case.beside)}] for case in CASES
    ]
    return dict(enumerate(ask(tiny_bundles["fp32"], calls)))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_c(number: int, from_c: dict[int, tuple[int, str]]) -> None:
    status, message = from_c[number]
    words = CASES[number].words
    if words is None:
        assert status == support.OK, message
    else:
        assert message.startswith(words)
        assert "\n" not in message
        long = words.startswith("the prompt has")
        assert status == (support.CONTEXT if long else support.INVALID)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_python(case: Case, opened: SpeculativeDecoder, tiny_bundle: Path) -> None:
    if case.words is None:
        in_python(case, opened, tiny_bundle)
        return
    with pytest.raises((ValueError, SpecplugError)) as caught:
        in_python(case, opened, tiny_bundle)
    assert str(caught.value).startswith(case.words)


def in_python(case: Case, opened: SpeculativeDecoder, bundle: Path) -> None:
    """One token, if it comes to that."""
    given: dict[str, Any] = {case.argument: case.value, **dict(case.beside)}
    if case.kind != "generation":
        SpeculativeDecoder.from_bundle(bundle, **{"drafter": "ngram"} | given).close()
        return
    for name in ("logit_bias", "forced_tokens"):
        if name in given:
            given[name] = dict(given[name])
    prompt = given.pop("prompt", PROMPT)
    sampling = SamplingParams(**{name: given.pop(name) for name in _SAMPLING if name in given})
    tokens = opened.stream(prompt, sampling=sampling, **given)
    next(tokens)
    tokens.close()  # type: ignore[attr-defined]


_COUNTS = {
    "bias_count": "bias_tokens",
    "banned_count": "banned_tokens",
    "forced_count": "forced_positions",
    "stop_count": "stop",
    "prediction_count": "prediction",
}


def test_what_only_c_can_say(native_build: None, tiny_bundle: Path) -> None:
    """Pointers to nothing, counts that cannot be, keys that are there twice, structs of no size."""
    cases: list[tuple[list[Any], int, str]] = [
        (["without_options"], support.OK, ""),
        (["call", "generation", {"prompt": None, "prompt_count": 3}], 1, "prompt is NULL"),
        (["call", "generation", {"prompt_count": SIZE_MAX}], 1, "the count of prompt is 1844674"),
        (["call", "model", {"provider_count": 1}], 1, "providers is NULL"),
        (["call", "model", {"provider_count": SIZE_MAX}], 1, "the count of providers is"),
        (["call", "model", {"providers": [""]}], 1, "providers ''"),
        (["call", "model", {"history_tokens": SIZE_MAX}], 1, "history_tokens 1844674"),
        (["call", "model", {"size": 3}], 1, "size 3 of options"),
        (["call", "model", {"size": SIZE_MAX}], 1, "size 18446744073709551615 of options"),
        (["call", "decoder", {"drafter": None}], 1, "drafter is NULL"),
        (["call", "decoder", {"drafter": "head"}], 6, "drafter 'head' runs from Python"),
        (["call", "generation", {"size": 0}], 1, "size 0 of options"),
        (["call", "generation", {"tenant": None}], support.OK, ""),
        (["call", "generation", {"logit_bias": [(5, 1.0), (5, 2.0)]}], 1, "bias_tokens: 5 is"),
        (["call", "generation", {"forced_tokens": [(0, 1), (0, 1)]}], 1, "forced_positions: 0 is"),
        (["call", "generation", {"stop": [None]}], 1, "stop is NULL"),
        (["call", "generation", {"acceptance": 1, "temperature": 1.0}], 6, "acceptance rule 1"),
        (["within_a_callback", "generate"], 7, "the decoder runs a generation"),
        (["within_a_callback", "tokens"], 7, "the decoder runs a generation"),
        (["within_a_callback", "cancel"], support.OK, ""),
        (["without_a_model"], support.OK, ""),
        (["text", "encode", SIZE_MAX], 1, "the count of the text's bytes is"),
        (["text", "decode", SIZE_MAX], 1, "the count of ids is"),
    ]
    for count, name in _COUNTS.items():
        null = {"bias_count": "bias_values", "forced_count": "forced_tokens"}.get(count, name)
        cases.append((["call", "generation", {count: 1}], 1, f"{null} is NULL"))
        cases.append((["call", "generation", {count: SIZE_MAX}], 1, f"the count of {name} is"))
    found = ask(tiny_bundle, [call for call, _, _ in cases])
    for (call, status, words), (got, message) in zip(cases, found, strict=True):
        assert got == status, (call, message)
        assert message.startswith(words), call
