"""What the commands share: where to write, the common options, the closing line."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import typer
from rich.console import Console

from specplug.context import Token
from specplug.decoder import SpeculativeDecoder
from specplug.decoding import Decoder
from specplug.drafters import DRAFTERS
from specplug.engines import names
from specplug.types import Engine, Step

_PIPE_WIDTH = 160  # characters of a table's line where there is no terminal

AnyDecoder = TypeVar("AnyDecoder", bound=Decoder)

stderr = Console(stderr=True, highlight=False)
stdout = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="Folder made by specplug export.")
]
DrafterName = Annotated[
    str,
    typer.Option(
        "--drafter", help="; ".join(f"{name}: {what}" for name, what in DRAFTERS.items()) + "."
    ),
]
DraftTokens = Annotated[
    str,
    typer.Option(
        "--draft-tokens",
        metavar="NUMBER|auto",
        help="Tokens a round may draft; 0: plain decoding; auto: as many as pay.",
    ),
]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, help="New tokens at most.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="Default: one a physical core.")
]
TargetEngine = Annotated[
    str | None,
    typer.Option(
        "--target-engine",
        metavar="ENGINE",
        help=f"Run the target on {', '.join(names())}. Default: what it was exported for.",
        show_default=False,
    ),
]
DraftEngine = Annotated[
    str | None,
    typer.Option(
        "--draft-engine", metavar="ENGINE", help="Run the draft on it.", show_default=False
    ),
]
TargetDevice = Annotated[
    str | None,
    typer.Option(
        "--target-device",
        metavar="DEVICE",
        help="For engines with several, such as cuda:1.",
        show_default=False,
    ),
]
DraftDevice = Annotated[
    str | None,
    typer.Option(
        "--draft-device", metavar="DEVICE", help="As --target-device.", show_default=False
    ),
]
Sources = Annotated[
    list[Path] | None,
    typer.Option(
        "--source",
        metavar="SOURCE",
        help="What a model was exported from, for --target-engine pytorch; repeatable. Default: "
        "looked for where specplug pull and the Hub keep theirs.",
        show_default=False,
    ),
]
AllowNarrow = Annotated[
    bool,
    typer.Option(
        "--allow-narrow",
        help="Give up the width rule: single-token calls may be faster, and the text may then "
        "differ from plain decoding's.",
    ),
]

InexactTrees = Annotated[
    bool,
    typer.Option(
        "--allow-inexact-trees",
        help="Draft trees also where integer rounding makes their scores other than a chain's: "
        "the text may then differ from plain decoding's.",
    ),
]


def draft_tokens(given: str) -> int | Literal["auto"]:
    """The number that ``--draft-tokens`` asks for."""
    if given == "auto":
        return "auto"
    try:
        return int(given)
    except ValueError:
        raise ValueError(f"--draft-tokens {given}: need a number, or auto") from None


def numbers(option: str, given: str, *, most: int = 512) -> list[int]:
    """The numbers of an option such as ``1,4,8``, ascending."""
    try:
        found = sorted({int(word) for word in given.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1 or found[-1] > most:
        raise ValueError(f"{option} {given}: need numbers from 1 to {most}, such as 1,4,8")
    return found


def note(text: str) -> None:
    """A line for the person at the keyboard."""
    stderr.print(text, style="dim", markup=False)


def fail(text: str) -> None:
    """The reason a command gives up."""
    stderr.print(f"[bold red]error:[/] {_escaped(text)}", soft_wrap=True)


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


def open_decoder(
    kind: type[AnyDecoder],
    bundle: Path,
    *,
    sources: list[Path] | None,
    allow_narrow: bool,
    inexact_trees: bool,
    **options: Any,
) -> AnyDecoder:
    """A decoder of a kind as the common options ask for it."""
    for name, given in (("narrow", allow_narrow), ("inexact-trees", inexact_trees)):
        if given:
            note(f"--allow-{name}: the text may differ from plain decoding's")
    return kind.from_bundle(
        bundle,
        sources=tuple(sources or ()),
        allow_narrow=allow_narrow,
        inexact_trees=inexact_trees,
        **options,
    )


def show(token: Token) -> None:
    """Write a token's text at once; in a terminal accepted drafts are green."""
    if not token.text:
        return
    if token.from_draft and stdout.is_terminal:
        stdout.print(token.text, style="green", end="", markup=False, soft_wrap=True)
    else:
        sys.stdout.write(token.text)
        sys.stdout.flush()


def closing_line(decoder: SpeculativeDecoder) -> str:
    """Tokens a second, acceptance length and the time that speculation saved or cost."""
    stats = decoder.stats
    line = (
        f"{stats.new_tokens} tokens in {stats.seconds:.2f} s: "
        f"{stats.tokens_per_second:.1f} tokens/s, acceptance length {stats.acceptance_length:.2f}"
    )
    if stats.drafted:
        cached = stats.prompt_tokens + stats.new_tokens - 1
        plain = (stats.new_tokens - 1) * seconds_per_token(decoder.target, cached)
        saved = plain - stats.decode_seconds
        line += f", about {abs(saved):.2f} s {'saved' if saved >= 0 else 'lost'}"
    return line


def seconds_per_token(engine: Engine, cached: int, *, calls: int = 5) -> float:
    """Median cost of plain decoding's call after ``cached`` entries; leaves them as they are."""
    width = engine.spec.min_width
    past = min(cached, engine.spec.max_length - width)
    step = Step(tokens=np.zeros((1, width), dtype=np.int64), past=np.array([past], dtype=np.int64))
    seconds = []
    for _ in range(calls):
        started = time.perf_counter()
        engine.forward(step)
        seconds.append(time.perf_counter() - started)
    return median(seconds)
