"""Options that do nothing beside the others: the user hears of it, for they meant something."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

Arguments = Mapping[str, Any]


def _greedy(arguments: Arguments) -> bool:
    return bool(arguments.get("temperature") == 0)


_IDLE: tuple[tuple[tuple[str, ...], Callable[[Arguments], bool], str], ...] = (
    (
        ("top_k", "top_p", "min_p", "typical_p", "seed", "acceptance"),
        _greedy,
        "at temperature 0 the likeliest token is taken",
    ),
    (
        ("prediction",),
        lambda given: given.get("drafter") not in ("auto", "predicted"),
        "this drafter does not look at it: --drafter auto or predicted do",
    ),
    (
        ("inexact_trees",),
        lambda given: given.get("drafter") == "none" or given.get("draft_tokens") == "0",
        "nothing is drafted",
    ),
    (
        ("max_per_key",),
        lambda given: given.get("api_key_file") is None,
        "without --api-key-file there are no keys",
    ),
    (("continuations",), lambda given: bool(given.get("plan")), "--plan leaves them out"),
)
"""Options by their parameters' names, when they do nothing, and why."""


def idle_options(command: Callable[..., None], arguments: Arguments) -> Iterator[str]:
    """A line for each option that was given and does nothing.

    Raises:
        ValueError: two options contradict one another.
    """
    defaults = {
        name: parameter.default for name, parameter in inspect.signature(command).parameters.items()
    }

    arguments = {**arguments, **(arguments.get("more") or {})}

    def given(name: str) -> bool:
        return arguments.get(name) is not None and arguments[name] != defaults.get(name)

    if (
        given("draft_tokens")
        and arguments["draft_tokens"] != "0"
        and (arguments.get("drafter") == "none" or arguments.get("drafters") == "none")
    ):
        raise ValueError(
            f"--draft-tokens {arguments['draft_tokens']}: with drafter none nothing is drafted: "
            "leave one of the two out"
        )
    for names, idle, reason in _IDLE:
        for name in names:
            if given(name) and idle(arguments):
                yield f"--{name.replace('_', '-')} does nothing here: {reason}"
