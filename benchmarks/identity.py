"""Speculative text against plain text, and fp32 text against transformers, token for token.

    .venv/bin/python benchmarks/identity.py SOURCE BUNDLE... [--workload specbench-dev]
    .venv/bin/python benchmarks/identity.py SOURCE BUNDLE... --temperature 0.7 1 --top-p 0.9
        --repetition-penalty 1.1 --presence-penalty 0.2 --name identity_sampled

SOURCE is what the bundles were exported from. Every bundle is decoded plainly, then with n-gram
lookup and, where it holds one, with its draft model, at each draft length. The text of fp32
bundles is then read by the source's transformers model, which must choose the same tokens
wherever its two best logits are more than MARGIN apart; at a temperature above 0 there is nothing
to compare with, since no other tool draws with the same noise.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from measuring import workload, write_result
from specplug import Bundle, SamplingParams, SpeculativeDecoder
from specplug.export.source import open_source
from specplug.generation_options import GenerationOptions

DRAFT_TOKENS = (1, 4, 8)
TOKENS = 128
MARGIN = 1e-3


def answers(
    bundle: Path,
    drafter: str,
    lengths: Sequence[int],
    prompts: Sequence[str],
    options: GenerationOptions,
) -> dict[int, list[tuple[int, ...]]]:
    """The answers' token ids by draft length, and nothing else shared between the lengths."""
    made: dict[int, list[tuple[int, ...]]] = {}
    for k in lengths:
        with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=k) as decoder:
            made[k] = [decoder.generate(prompt, **options).token_ids for prompt in prompts]
            print(f"  {bundle.name} {drafter} k={k}: {sum(map(len, made[k]))} tokens", flush=True)
    return made


def drafters_of(bundle: Path) -> tuple[str, ...]:
    return ("ngram", "draft") if Bundle.open(bundle).manifest.draft else ("ngram",)


def against_plain(
    bundle: Path, prompts: Sequence[str], options: GenerationOptions
) -> tuple[list[tuple[int, ...]], list[dict[str, Any]]]:
    """The plain answers, and for every drafter and length the prompts whose answers differ."""
    plain = answers(bundle, "none", (0,), prompts, options)[0]
    compared = [
        {
            "drafter": drafter,
            "draft_tokens": k,
            "answers": len(made),
            "differing": [
                i for i, pair in enumerate(zip(plain, made, strict=True)) if len({*pair}) > 1
            ],
        }
        for drafter in drafters_of(bundle)
        for k, made in answers(bundle, drafter, DRAFT_TOKENS, prompts, options).items()
    ]
    return plain, compared


def against_source(
    model: Any, prompts: Sequence[Sequence[int]], plain: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """Where the source would have said something else, given the same text before it."""
    compared, otherwise, close = 0, 0, 0
    for prompt, answer in zip(prompts, plain, strict=True):
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0]
        best = logits[len(prompt) - 1 : -1].topk(2)
        clear = best.values[:, 0] - best.values[:, 1] > MARGIN
        other = best.indices[:, 0] != torch.tensor(answer)
        compared += len(answer)
        close += int((~clear).sum())
        otherwise += int((other & clear).sum())
    return {
        "tokens": compared,
        "margin": MARGIN,
        "differing_beyond_margin": otherwise,
        "within_margin": close,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--workload", default="specbench-dev")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="new ones, a prompt")
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0])
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--repetition-penalty", type=float, default=1.0)
    parser.add_argument("--presence-penalty", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--name", default="identity", help="of the result file")
    arguments = parser.parse_args()
    prompts = [item["prompt"] for item in workload(arguments.workload)]
    runs = []
    for bundle, temperature in itertools.product(arguments.bundles, arguments.temperature):
        params = SamplingParams(
            temperature=temperature,
            top_p=arguments.top_p,
            repetition_penalty=arguments.repetition_penalty,
            presence_penalty=arguments.presence_penalty,
            seed=arguments.seed,
        )
        opened = Bundle.open(bundle)
        precision = opened.manifest.target.precision
        plain, compared = against_plain(
            bundle, prompts, {"max_tokens": arguments.tokens, "sampling": params}
        )
        run: dict[str, Any] = {
            "precision": precision,
            "temperature": temperature,
            "against_plain": compared,
        }
        if precision == "fp32" and params.plain:
            tokenizer = opened.tokenizer()
            encoded = [tokenizer.encode_prompt(prompt) for prompt in prompts]
            run["against_transformers"] = against_source(
                open_source(arguments.source).reference(), encoded, plain
            )
        runs.append(run)
        print(run)
    asked = {"workload": arguments.workload, "new_tokens": arguments.tokens}
    for name in ("top_p", "repetition_penalty", "presence_penalty", "seed"):
        asked[name] = getattr(arguments, name)
    print(write_result(arguments.name, {**asked, "runs": runs}))


if __name__ == "__main__":
    main()
