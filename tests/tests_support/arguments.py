"""What both languages take for an argument, and what they refuse, in one table."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

VOCAB = 260
"""Of the tiny bundles."""

NAN, INFINITY = math.nan, math.inf
LARGEST, LEAST = 2**63 - 1, -(2**63)


@dataclass(frozen=True, slots=True)
class Case:
    """A value of one argument; maps are lists of pairs, as C has them."""

    kind: Literal["model", "decoder", "generation"]
    argument: str
    value: Any
    words: str | None = None
    """What the error begins with, in both languages; None: it is accepted."""
    beside: tuple[tuple[str, Any], ...] = ()
    """Other arguments."""

    def __str__(self) -> str:
        shown = repr(self.value)
        return f"{self.argument}={shown[:40]}"


def _cases(kind: Any, argument: str, accepted: tuple[Any, ...], refused: dict[Any, str]) -> Any:
    yield from (Case(kind, argument, value) for value in accepted)
    for value, words in refused.items():
        restored = list(value) if isinstance(value, tuple) else value
        yield Case(kind, argument, restored, words)


def _numbers(argument: str, accepted: tuple[Any, ...], refused: tuple[Any, ...]) -> Any:
    words = {value: f"{argument} {value}: it must be" for value in refused}
    return _cases("generation", argument, accepted, words)


_SHIFTED = (NAN, INFINITY, -INFINITY, 1e300, -1e31)

CASES: tuple[Case, ...] = (
    *_cases(
        "generation",
        "max_tokens",
        (1, LARGEST),
        {bad: f"max_tokens {bad}: need at least 1" for bad in (0, -1, LEAST)},
    ),
    *_numbers(
        "temperature",
        (0.0, 1e-8, 0.7, 1e8),
        (-0.1, NAN, INFINITY, -INFINITY, 1e-40, 9e-09, 1e300),
    ),
    *_numbers("top_k", (0, 1, VOCAB, LARGEST), (-1, LEAST)),
    *_numbers("top_p", (1.0, 0.5, 1e-300), (0.0, -0.5, 1.5, NAN, INFINITY, -INFINITY)),
    *_numbers("min_p", (0.0, 1.0, 1e-300), (-0.1, 1.1, NAN, INFINITY)),
    *_numbers("typical_p", (1.0, 0.5, 1e-300), (0.0, -0.5, 1.5, NAN, INFINITY)),
    *_numbers("repetition_penalty", (1e-8, 1.0, 1e8), (0.0, -1.0, NAN, INFINITY, 1e-300, 1e9)),
    *_numbers("presence_penalty", (1e30, -1e30), _SHIFTED),
    *_numbers("frequency_penalty", (1e30, -1e30), _SHIFTED),
    *_numbers("no_repeat_ngram", (0, 2, LARGEST), (-1, LEAST)),
    *_cases(
        "generation",
        "logit_bias",
        ([], [(3, 1e30)], [(3, -1e30)], [(0, 1.5), (VOCAB - 1, -1.5)]),
        {((3, bad),): f"logit_bias {bad} of token 3: it must be" for bad in _SHIFTED}
        | {((bad, 1.0),): f"logit_bias: token id {bad} is not in" for bad in (-1, VOCAB, LARGEST)},
    ),
    *_cases(
        "generation",
        "banned_tokens",
        ([], [5, 5]),
        {(bad,): f"banned_tokens: token id {bad} is not in" for bad in (-1, VOCAB, LEAST)},
    ),
    *_cases(
        "generation",
        "forced_tokens",
        ([], [(0, 5)], [(LARGEST, 5)]),
        {
            ((-1, 5),): "forced_tokens: position -1 of the answer must be >= 0",
            ((LEAST, 5),): f"forced_tokens: position {LEAST} of the answer must be >= 0",
            ((0, VOCAB),): f"forced_tokens: token id {VOCAB} is not in",
            ((0, -1),): "forced_tokens: token id -1 is not in",
        },
    ),
    *_cases("generation", "seed", (0, 2**64 - 1), {}),
    *_cases("generation", "sample", (0, 2**64 - 1), {}),
    *_cases(
        "generation",
        "acceptance",
        ("coupled", "rejection", "block"),  # when greedy, all rules are one
        {7: "acceptance 7: it must be", -1: "acceptance -1: it must be"},
    ),
    Case("generation", "acceptance", "coupled", beside=(("temperature", 1.0),)),
    Case(
        "generation",
        "forced_tokens",
        [(2, 5)],
        "forced_tokens: token 5 at 2 is in banned_tokens",
        beside=(("banned_tokens", [4, 5]),),
    ),
    *_cases(
        "generation",
        "stop_token_ids",
        ([], [5, 5]),
        {(bad,): f"stop_token_ids: token id {bad} is not in" for bad in (-1, VOCAB, LARGEST)},
    ),
    *_cases(
        "generation",
        "stop",
        ([], ["x"], ["ä", "x"]),
        {("",): "stop ''", ("ok", ""): "stop ''", ("a\udcff",): "stop 'a"},
    ),
    *_cases(
        "generation",
        "prediction",
        ([], [5]),
        {(bad,): f"prediction: token id {bad} is outside" for bad in (-1, VOCAB, LARGEST)},
    ),
    *_cases("generation", "tenant", ("", "x", "ä"), {}),
    *_cases(
        "generation",
        "prompt",
        ([1], [0, VOCAB - 1]),
        {
            (): "the prompt is empty",
            (-1,): "token id -1 is outside",
            (1, VOCAB): f"token id {VOCAB} is outside",
            (LARGEST,): f"token id {LARGEST} is outside",
            (1,) * 5000: "the prompt has 5000 tokens and the context ends at",
        },
    ),
    *_cases(
        "decoder",
        "draft_tokens",
        (0, 255),
        {bad: f"draft_tokens {bad}: need" for bad in (-2, 256, 2**31 - 1, -(2**31))},
    ),
    Case(
        "decoder",
        "draft_tokens",
        4,
        "draft_tokens 4: drafter 'none' drafts nothing",
        beside=(("drafter", "none"),),
    ),
    Case("decoder", "draft_tokens", 0, beside=(("drafter", "none"),)),
    *_cases(
        "decoder",
        "drafter",
        ("none", "ngram", "suffix", "recycle", "predicted", "auto"),
        {
            bad: f"drafter '{bad}' is none of none, ngram, suffix"
            for bad in ("ngrm", "recycles", "NGRAM", "", "zzzzzzzz")
        },
    ),
    *_cases(
        "decoder",
        "prompt_lookup_min",
        (1, 16),
        {0: "prompt_lookup_min 0", -1: "prompt_lookup_min -1"},
    ),
    *_cases("decoder", "prompt_lookup_max", (2, 2**31 - 1), {}),
    *(
        Case(
            "decoder",
            "prompt_lookup_max",
            bad,
            f"prompt_lookup_min 2 and prompt_lookup_max {bad}: need 1 <= min <= max",
        )
        for bad in (1, 0, -1)
    ),
    *(
        Case(
            "decoder",
            name,
            9,
            f"{name} 9: drafter 'suffix' does not use it, 'ngram' alone does",
            beside=(("drafter", "suffix"),),
        )
        for name in ("prompt_lookup_min", "prompt_lookup_max")
    ),
    *_cases(
        "model",
        "threads",
        (1,),
        {bad: f"threads {bad}: it must be in [" for bad in (-1, 1025, 2**31 - 1)},
    ),
)
