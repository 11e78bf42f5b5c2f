"""How much the acceptance rules accept of a draft model's tokens, at several temperatures.

    .venv/bin/python benchmarks/acceptance.py BUNDLE [--workload specbench-dev] [--draft-tokens 4]

BUNDLE holds a draft model. Nothing is timed: the figures are counts, the same on every machine
with the same rows.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any, get_args

from measuring import workload, write_result
from specplug import Bundle, SamplingParams, SpeculativeDecoder
from specplug.sampling import Acceptance


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workload", default="specbench-dev")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64, help="new ones, a prompt")
    parser.add_argument("--draft-tokens", type=int, default=4)
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.7, 1.0])
    parser.add_argument("--top-p", type=float, default=0.9)
    arguments = parser.parse_args()
    prompts = [item["prompt"] for item in workload(arguments.workload)][: arguments.prompts]
    figures: list[dict[str, Any]] = []
    with SpeculativeDecoder.from_bundle(
        arguments.bundle, drafter="draft", draft_tokens=arguments.draft_tokens
    ) as decoder:
        for temperature, rule in itertools.product(arguments.temperature, get_args(Acceptance)):
            params = SamplingParams(temperature=temperature, top_p=arguments.top_p, acceptance=rule)
            accepted: list[int] = []
            drafted: list[int] = []
            for sample, prompt in enumerate(prompts):
                stats = decoder.generate(
                    prompt, max_tokens=arguments.tokens, sampling=params, sample=sample
                ).stats
                accepted += stats.accepted_per_round
                drafted += stats.drafted_per_round
            figures.append(
                {
                    "temperature": temperature,
                    "acceptance": rule,
                    "rounds": len(accepted),
                    "acceptance_rate": sum(accepted) / sum(drafted),
                    "acceptance_length": 1 + sum(accepted) / len(accepted),
                }
            )
            print(figures[-1], flush=True)
    manifest = Bundle.open(arguments.bundle).manifest
    draft = manifest.draft
    result = {
        "target": f"{manifest.target.parameters / 1e6:.0f}M in {manifest.target.precision}",
        "draft": draft and f"{draft.parameters / 1e6:.0f}M in {draft.precision}",
        "workload": arguments.workload,
        "prompts": len(prompts),
        "new_tokens": arguments.tokens,
        "draft_tokens": arguments.draft_tokens,
        "top_p": arguments.top_p,
        "rules": figures,
    }
    print(write_result("acceptance", result))


if __name__ == "__main__":
    main()
