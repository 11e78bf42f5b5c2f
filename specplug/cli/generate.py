"""``specplug generate``: one prompt, one answer or several."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from specplug import option_values as values
from specplug.cli import choosing, console, options, texts
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
from specplug.generation import Result
from specplug.generation_options import CallOptions, check_options, split_options
from specplug.logprobs import TokenLogprobs
from specplug.text import Messages
from specplug.text_file import read_text


class LogprobsModeName(StrEnum):
    """Values of ``--logprobs-mode``."""

    raw = "raw"
    processed = "processed"


@options.takes(options.SAMPLING, options.ANSWER, options.PROMPT)
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
    logprobs_mode: Annotated[
        LogprobsModeName,
        typer.Option(
            "--logprobs-mode", help="raw: of the target as it is; processed: as it is sampled."
        ),
    ] = LogprobsModeName.raw,
    prompt_logprobs: Annotated[
        int | None,
        typer.Option(
            "--prompt-logprobs", metavar="N", help="As --logprobs, of the prompt's tokens."
        ),
    ] = None,
    echo: Annotated[bool, typer.Option("--echo", help="Give the prompt, too.")] = False,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--raw", help="Use the chat template, or not. Default: if there is one."
        ),
    ] = None,
    as_messages: Annotated[
        bool,
        typer.Option(
            "--messages", help="The prompt is a JSON list of messages with role and content."
        ),
    ] = False,
    more: options.More | None = None,
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
        more=options.sampling_fields(more or {}),
    )
    if samples > 1 and not temperature:
        raise ValueError(f"-n {samples}: greedy answers are all the same: set --temperature")
    if prompt == "-":
        prompt = texts.read_input("the prompt")
    asked: CallOptions = {
        "max_tokens": max_tokens,
        "sampling": sampling,
        "logprobs": logprobs,
        "logprobs_mode": logprobs_mode.value,
        "prompt_logprobs": prompt_logprobs,
        "echo": echo,
        "prediction": _prediction(prediction),
        "chat": chat,
        **cast(CallOptions, options.other_fields(more or {})),
    }
    of_prompt, of_answer = split_options(asked)
    check_options(of_answer)  # opening a bundle takes a while
    read = _messages(prompt) if as_messages else prompt
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
        ids = decoder.encode(read, max_tokens=max_tokens, **of_prompt)
        for of_answer["sample"] in range(samples):
            if as_json:
                answers.append(_described(decoder, ids, decoder.generate(ids, **of_answer)))
                continue
            if samples > 1:
                console.note(f"answer {of_answer['sample'] + 1} of {samples}")
            tokens = []
            for token in decoder.stream(ids, **of_answer):
                console.show(token)
                tokens.append(token)
            print()
            if decoder.prompt_logprobs is not None:
                _show_logprobs(decoder, ids, decoder.prompt_logprobs)
            if logprobs is not None:
                _show_logprobs(
                    decoder, [one.id for one in tokens], [one.logprobs for one in tokens]
                )
            console.note(console.closing_line(decoder))
    if as_json:
        whole = answers[0] if samples == 1 else {"samples": answers}
        texts.print_json({**whole, "seed": sampling.seed})


def _prediction(given: str | None) -> str:
    """The text, which the option may name the file of."""
    if given is None or not given.startswith("@"):
        return given or ""
    return read_text(Path(given[1:]), "--prediction")


def _messages(prompt: str) -> Messages:
    """The messages that a prompt is the JSON of."""
    found = values.parsed_json("--messages", prompt)
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise ValueError("--messages: need a JSON list of objects with role and content")
    return found


def _described(decoder: SpeculativeDecoder, prompt: list[int], result: Result) -> dict[str, Any]:
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
        answer["logprobs"] = [_entry(decoder, one.id, one.logprobs) for one in result.tokens]
    if result.prompt_logprobs is not None:
        pairs = zip(prompt, result.prompt_logprobs, strict=True)
        answer["prompt_logprobs"] = [_entry(decoder, token, found) for token, found in pairs]
    return answer


def _entry(
    decoder: SpeculativeDecoder, token: int, found: TokenLogprobs | None
) -> dict[str, Any] | None:
    """A token's log-probabilities as JSON has them."""
    if found is None:
        return None
    return {
        **_named(decoder, token),
        "logprob": found.chosen,
        "top": [{**_named(decoder, other), "logprob": value} for other, value in found.top],
    }


def _named(decoder: SpeculativeDecoder, token: int) -> dict[str, Any]:
    """A token's id and text; of a part of a character only the bytes tell which."""
    utf8 = decoder.tokenizer.detokenizer.spell(token) if decoder.tokenizer else b""
    return {"id": token, "token": _name(decoder, token), "bytes": list(utf8)}


def _show_logprobs(
    decoder: SpeculativeDecoder, tokens: Sequence[int], found: Sequence[TokenLogprobs | None]
) -> None:
    """A line a token: its log-probability, itself, and the likeliest ones."""
    for token, logprobs in zip(tokens, found, strict=True):
        if logprobs:
            print(
                f"{logprobs.chosen:9.4f} {_name(decoder, token)!r}",
                *(f"{_name(decoder, other)!r} {value:.4f}" for other, value in logprobs.top),
                sep="\t",
            )


def _name(decoder: SpeculativeDecoder, token: int) -> str:
    return decoder.tokenizer.name(token) if decoder.tokenizer else str(token)
