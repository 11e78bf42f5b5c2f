"""``specplug generate``: one prompt, one answer."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from specplug.cli import console
from specplug.cli.console import (
    AllowNarrow,
    BundlePath,
    DrafterName,
    DraftTokens,
    MaxTokens,
    Threads,
)


def generate(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    drafter: DrafterName = "ngram",
    draft_tokens: DraftTokens = 8,
    max_tokens: MaxTokens = 256,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Use the chat template, or not. Default: if there is one."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of streamed text.")
    ] = False,
    threads: Threads = None,
    allow_narrow: AllowNarrow = False,
) -> None:
    """Answer a prompt, streaming text as it is accepted."""
    if prompt == "-":
        prompt = sys.stdin.read()
    with console.open_decoder(bundle, drafter, draft_tokens, threads, allow_narrow) as decoder:
        if as_json:
            result = decoder.generate(prompt, max_tokens=max_tokens, chat=chat)
            answer = {
                "text": result.text,
                "token_ids": list(result.token_ids),
                "finish_reason": result.finish_reason,
                "prompt_tokens": result.stats.prompt_tokens,
                "tokens_per_second": result.stats.tokens_per_second,
                "first_token_seconds": result.stats.prefill_seconds,
                "speculative_decoding": result.stats.as_dict(),
            }
            print(json.dumps(answer, ensure_ascii=False))
            return
        for token in decoder.stream(prompt, max_tokens=max_tokens, chat=chat):
            console.show(token)
        print()
        console.note(console.closing_line(decoder))
