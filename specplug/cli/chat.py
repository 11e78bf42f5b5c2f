"""``specplug chat``: a conversation in the terminal."""

from __future__ import annotations

from typing import cast

from specplug.cli import choosing, console, interrupts, options, texts
from specplug.cli.choosing import Acceptance, MinP, Seed, Temperature, TopK, TopP
from specplug.cli.console import (
    AllowNarrow,
    BundlePath,
    DraftDevice,
    DraftEngine,
    DrafterName,
    DraftTokens,
    InexactTrees,
    MaxTokens,
    Sources,
    TargetDevice,
    TargetEngine,
    Threads,
)
from specplug.decoder import SpeculativeDecoder
from specplug.generation_options import CallOptions
from specplug.types import ContextLimitError


@options.takes(options.SAMPLING, options.ANSWER, options.TEMPLATE)
def chat(
    bundle: BundlePath,
    drafter: DrafterName = "auto",
    draft_tokens: DraftTokens = "auto",
    max_tokens: MaxTokens = 512,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    acceptance: Acceptance = choosing.AcceptanceRule.coupled,
    more: options.More | None = None,
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    draft_engine: DraftEngine = None,
    draft_device: DraftDevice = None,
    source: Sources = None,
    threads: Threads = None,
    allow_narrow: AllowNarrow = False,
    inexact_trees: InexactTrees = False,
) -> None:
    """Talk to the model. /reset forgets the conversation, /exit or Ctrl-D ends it."""
    sampling = choosing.choice(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        acceptance=acceptance,
        more=options.sampling_fields(more or {}),
    )
    asked: CallOptions = {
        "max_tokens": max_tokens,
        "sampling": sampling,
        **cast(CallOptions, options.other_fields(more or {})),
    }
    with console.open_decoder(
        SpeculativeDecoder,
        bundle,
        drafter=drafter,
        draft_tokens=console.draft_tokens(draft_tokens),
        target_engine=target_engine,
        target_device=target_device,
        draft_engine=draft_engine,
        draft_device=draft_device,
        sources=source,
        threads=threads,
        allow_narrow=allow_narrow,
        inexact_trees=inexact_trees,
    ) as decoder:
        if decoder.tokenizer is None or not decoder.tokenizer.has_chat_template:
            raise ValueError(f"{bundle} has no chat template: use specplug generate --raw")
        messages: list[dict[str, str]] = []
        console.note("/reset forgets the conversation, /exit or Ctrl-D ends it")
        while (line := _ask()) not in (None, "/exit"):
            try:
                line = texts.check_words(line, "the line")
            except ValueError as error:
                console.fail(str(error))
                continue
            if not line or line == "/reset":
                messages = messages if not line else []
                continue
            messages.append({"role": "user", "content": line})
            parts = []
            try:
                for token in decoder.stream(messages, **asked):
                    parts.append(token.text)
                    console.show(token)
            except ContextLimitError as error:
                messages.pop()
                console.fail(f"{error}, or /reset the conversation")
                continue
            except KeyboardInterrupt:
                interrupts.forget()
                console.note(" (stopped)")
            print()
            messages.append({"role": "assistant", "content": "".join(parts)})
            console.note(console.closing_line(decoder))


def _ask() -> str | None:
    """A line from the user; None at the end of input."""
    try:
        console.stderr.print("[bold]> [/]", end="")
        return input().strip()
    except EOFError:
        console.stderr.print()
        return None
