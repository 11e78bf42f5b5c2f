"""The options that say how tokens are chosen, shared by the commands that generate."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

from specplug.cli import console
from specplug.sampling import SamplingParams


class AcceptanceRule(StrEnum):
    """Values of ``--acceptance``."""

    coupled = "coupled"
    rejection = "rejection"
    block = "block"


Temperature = Annotated[
    float, typer.Option("--temperature", help="0: always the likeliest token; else sample.")
]
TopK = Annotated[int, typer.Option("--top-k", help="Of the k likeliest tokens; 0: of all.")]
TopP = Annotated[
    float, typer.Option("--top-p", help="Of the likeliest tokens that together reach this.")
]
MinP = Annotated[
    float, typer.Option("--min-p", help="Of tokens with this share of the likeliest one's chance.")
]
Seed = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed gives the same text. Default: a random one, named."),
]
Acceptance = Annotated[
    AcceptanceRule,
    typer.Option(
        "--acceptance",
        help="When sampling. coupled: the text depends on the seed alone; rejection, block: the "
        "same distribution, other text for other drafts.",
    ),
]


def choice(
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    seed: int | None,
    acceptance: AcceptanceRule = AcceptanceRule.coupled,
    more: Mapping[str, Any] | None = None,
) -> SamplingParams:
    """The parameters that the options ask for; ``more``: further fields."""
    drawn = seed is None and temperature > 0
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=secrets.randbits(32) if drawn else seed or 0,
        acceptance=acceptance.value,
        **(more or {}),
    )
    if drawn:
        console.note(f"--seed {params.seed} gives this text again")
    return params
