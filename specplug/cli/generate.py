"""``specplug generate``: one prompt, one answer or several."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from specplug.cli import choosing, console, texts
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
from specplug.context import Token
from specplug.decoder import SpeculativeDecoder
from specplug.generation import GenerationOptions, Result
from specplug.text_file import read_text


def generate(
    bundle: BundlePath,
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    drafter: DrafterName = "auto",
    draft_tokens: DraftTokens = "auto",
    max_tokens: MaxTokens = 256,
    temperature: Temperature = 0.0,
    top_k: TopK = 0,
    top_p: TopP = 1.0,
    min_p: MinP = 0.0,
    seed: Seed = None,
    acceptance: Acceptance = choosing.AcceptanceRule.coupled,
    samples: Annotated[
        int, typer.Option("-n", min=1, help="Answers to give, each with noise of its own.")
    ] = 1,
    stop: Annotated[
        list[str] | None,
        typer.Option("--stop", help="A string that ends the answer, not shown. Repeatable."),
    ] = None,
    json_schema: Annotated[
        str | None,
        typer.Option(
            "--json-schema",
            metavar="SCHEMA",
            help="Answer in JSON of this schema: JSON, or a file.",
        ),
    ] = None,
    regex: Annotated[
        str | None,
        typer.Option("--regex", help="Answer with text that as a whole matches this expression."),
    ] = None,
    prediction: Annotated[
        str | None,
        typer.Option(
            "--prediction",
            metavar="TEXT|@FILE",
            help="What the answer is expected to be, such as the file that is edited.",
        ),
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help="Give each token's log-probability and the N likeliest tokens.",
        ),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Give the prompt, too.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Use the chat template, or not. Default: if there is one."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object instead of streamed text.")
    ] = False,
    target_engine: TargetEngine = None,
    target_device: TargetDevice = None,
    draft_engine: DraftEngine = None,
    draft_device: DraftDevice = None,
    source: Sources = None,
    threads: Threads = None,
    allow_narrow: AllowNarrow = False,
    inexact_trees: InexactTrees = False,
) -> None:
    """Answer a prompt, streaming text as it is accepted."""
    sampling = choosing.choice(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        seed=seed,
        acceptance=acceptance,
        json_schema=json_schema,
        regex=regex,
    )
    if samples > 1 and not temperature:
        raise ValueError(f"-n {samples}: greedy answers are all the same: set --temperature")
    if prompt == "-":
        prompt = texts.read_input("the prompt")
    options: GenerationOptions = {
        "max_tokens": max_tokens,
        "sampling": sampling,
        "stop": stop or [],
        "logprobs": logprobs,
        "echo": echo,
        "prediction": _prediction(prediction),
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
        answers = []
        for options["sample"] in range(samples):
            if as_json:
                answers.append(_described(decoder, decoder.generate(prompt, chat=chat, **options)))
                continue
            if samples > 1:
                console.note(f"answer {options['sample'] + 1} of {samples}")
            tokens = []
            for token in decoder.stream(prompt, chat=chat, **options):
                console.show(token)
                tokens.append(token)
            print()
            if logprobs is not None:
                _show_logprobs(decoder, tokens)
            console.note(console.closing_line(decoder))
    if as_json:
        whole = answers[0] if samples == 1 else {"samples": answers}
        texts.print_json({**whole, "seed": sampling.seed})


def _prediction(given: str | None) -> str:
    """The text, which the option may name the file of."""
    if given is None or not given.startswith("@"):
        return given or ""
    return read_text(Path(given[1:]), "--prediction")


def _described(decoder: SpeculativeDecoder, result: Result) -> dict[str, Any]:
    stats = result.stats
    answer: dict[str, Any] = {
        "text": result.text,
        "token_ids": list(result.token_ids),
        "finish_reason": result.finish_reason,
        "prompt_tokens": stats.prompt_tokens,
        "tokens_per_second": stats.tokens_per_second,
        "first_token_seconds": stats.prefill_seconds,
        "speculative_decoding": stats.as_dict(),
    }
    if any(token.logprobs for token in result.tokens):
        answer["logprobs"] = [
            token.logprobs
            and {
                "token": _name(decoder, token.id),
                "logprob": token.logprobs.chosen,
                "top": [
                    {"id": other, "token": _name(decoder, other), "logprob": value}
                    for other, value in token.logprobs.top
                ],
            }
            for token in result.tokens
        ]
    return answer


def _show_logprobs(decoder: SpeculativeDecoder, tokens: list[Token]) -> None:
    """A line a token: itself, its log-probability, and the likeliest ones."""
    for token in tokens:
        if token.logprobs:
            print(
                f"{token.logprobs.chosen:9.4f} {_name(decoder, token.id)!r}",
                *(f"{_name(decoder, other)!r} {value:.4f}" for other, value in token.logprobs.top),
                sep="\t",
            )


def _name(decoder: SpeculativeDecoder, token: int) -> str:
    return decoder.tokenizer.name(token) if decoder.tokenizer else str(token)
