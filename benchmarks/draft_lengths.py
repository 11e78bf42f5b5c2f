"""A draft model at several draft lengths: acceptance, time over plain, and whether texts agree.

    .venv/bin/python benchmarks/draft_lengths.py BUNDLE [--workload code] [--tokens 96]

Plain decoding and every length take turns on each prompt.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from measuring import spread, workload, write_result
from specplug import Bundle, SpeculativeDecoder

DRAFT_TOKENS = (1, 2, 4, 8)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--workload", default="code")
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--name", default="draft_lengths", help="of the result file")
    arguments = parser.parse_args()
    manifest = Bundle.open(arguments.bundle).manifest
    ratios: dict[int, list[float]] = {k: [] for k in DRAFT_TOKENS}
    accepted: dict[int, list[float]] = {k: [] for k in DRAFT_TOKENS}
    plain_speed, same = [], True
    with SpeculativeDecoder.from_bundle(arguments.bundle, drafter="draft") as decoder:
        for item in workload(arguments.workload):
            prompt = decoder.encode(item["prompt"])
            decoder.draft_tokens = 0
            plain = decoder.generate(prompt, max_tokens=arguments.tokens)
            plain_speed.append(plain.stats.decode_tokens_per_second)
            for k in DRAFT_TOKENS:
                decoder.draft_tokens = k
                drafted = decoder.generate(prompt, max_tokens=arguments.tokens)
                same &= drafted.token_ids == plain.token_ids
                accepted[k].append(drafted.stats.acceptance_length)
                ratios[k].append(plain.stats.decode_seconds / drafted.stats.decode_seconds)
    components = {
        name: f"{component.parameters / 1e6:.0f}M in {component.precision}"
        for name, component in (("target", manifest.target), ("draft", manifest.draft))
        if component
    }
    result = {
        **components,
        "workload": arguments.workload,
        "texts_identical": same,
        "plain_tokens_per_second": spread(plain_speed),
        "by_draft_tokens": {
            str(k): {
                "acceptance_length": statistics.mean(accepted[k]),
                "over_plain": spread(ratios[k]),
            }
            for k in DRAFT_TOKENS
        },
    }
    for k, found in result["by_draft_tokens"].items():
        print(
            f"k={k}: acceptance length {found['acceptance_length']:.2f}, "
            f"{found['over_plain']['median']:.2f} x plain"
        )
    print(f"texts identical: {same}")
    print(write_result(arguments.name, result))


if __name__ == "__main__":
    main()
