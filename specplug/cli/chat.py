"""``specplug chat``: a conversation in the terminal."""

from __future__ import annotations

from specplug.cli import console
from specplug.cli.console import (
    AllowNarrow,
    BundlePath,
    DrafterName,
    DraftTokens,
    MaxTokens,
    Threads,
)
from specplug.types import ContextLimitError


def chat(
    bundle: BundlePath,
    drafter: DrafterName = "ngram",
    draft_tokens: DraftTokens = 8,
    max_tokens: MaxTokens = 512,
    threads: Threads = None,
    allow_narrow: AllowNarrow = False,
) -> None:
    """Talk to the model. /reset forgets the conversation, /exit or Ctrl-D ends it."""
    with console.open_decoder(bundle, drafter, draft_tokens, threads, allow_narrow) as decoder:
        if decoder.tokenizer is None or not decoder.tokenizer.has_chat_template:
            raise ValueError(f"{bundle} has no chat template: use specplug generate --raw")
        messages: list[dict[str, str]] = []
        console.note("/reset forgets the conversation, /exit or Ctrl-D ends it")
        while (line := _ask()) not in (None, "/exit"):
            if not line or line == "/reset":
                messages = messages if not line else []
                continue
            messages.append({"role": "user", "content": line})
            parts = []
            try:
                for token in decoder.stream(messages, max_tokens=max_tokens):
                    parts.append(token.text)
                    console.show(token)
            except ContextLimitError as error:
                messages.pop()
                console.fail(f"{error}, or /reset the conversation")
                continue
            except KeyboardInterrupt:
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
