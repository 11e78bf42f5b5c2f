"""Cost of a call by width, speculation against plain decoding, and the program's own share.

    .venv/bin/python benchmarks/speculation.py BUNDLE... [--workload quoting] [--repeats 3]
    .venv/bin/python benchmarks/speculation.py BUNDLE... --costs-only

Everything alternates within one run: widths in turn, and on each prompt plain decoding beside
every draft length. Texts are compared on the way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from measuring import spread, workload, write_result
from specplug import Bundle, SpeculativeDecoder, Step
from specplug.engines.native_ops import VARIABLE, native_ops

WIDTHS = (1, 2, 4, 5, 8, 16)
DRAFT_TOKENS = (4, 8, 12)
TOKENS = 128
PAST = 200
PLAIN_W8A8 = "w8a8 without native operators"


def call_costs(decoder: SpeculativeDecoder, repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a call by width, after PAST cached tokens."""
    rng = np.random.default_rng(0)
    vocab, least = decoder.target.spec.vocab_size, decoder.target.spec.min_width
    tokens = rng.integers(0, vocab, size=(1, PAST))
    decoder.target.forward(Step(tokens=tokens, past=np.array([0]), scores_from=PAST - 1))
    seconds: dict[int, list[float]] = {width: [] for width in WIDTHS}
    for _ in range(20 * repeats):
        for width in WIDTHS:
            padded = max(width, least)  # what a call of one token costs is what it is padded to
            step = Step(tokens=tokens[:, :padded], past=np.array([PAST]))
            started = time.perf_counter()
            decoder.target.forward(step)
            seconds[width].append(time.perf_counter() - started)
    return {
        str(w): spread(1000 * s for s in values[len(values) // 10 :])
        for w, values in seconds.items()
    }


class Clock:
    """Counts the seconds spent inside ONNX Runtime's run."""

    def __init__(self, decoder: SpeculativeDecoder) -> None:
        self.seconds = 0.0
        session = decoder.target._session  # type: ignore[attr-defined]
        run = session.run_with_iobinding

        def timed(binding: Any) -> None:
            started = time.perf_counter()
            run(binding)
            self.seconds += time.perf_counter() - started

        session.run_with_iobinding = timed


def against_plain(decoder: SpeculativeDecoder, name: str, repeats: int) -> dict[str, Any]:
    """Decode every prompt plainly and with each draft length, in turn."""
    clock = Clock(decoder)
    lengths = (0, *DRAFT_TOKENS)
    prompts = [decoder.encode(item["prompt"]) for item in workload(name)]
    ratios: dict[int, list[float]] = {k: [] for k in DRAFT_TOKENS}
    speeds: dict[int, list[float]] = {k: [] for k in lengths}
    accepted: dict[int, list[float]] = {k: [] for k in lengths}
    own: dict[int, list[float]] = {k: [] for k in lengths}
    same = True
    decoder.generate(prompts[0], max_tokens=8)
    for _ in range(repeats):
        for prompt in prompts:
            plain = None
            for k in lengths:
                decoder.draft_tokens = k
                clock.seconds = 0.0
                result = decoder.generate(prompt, max_tokens=TOKENS)
                stats = result.stats
                plain = plain or result
                same &= result.token_ids == plain.token_ids
                speeds[k].append(stats.decode_tokens_per_second)
                accepted[k].append(stats.acceptance_length)
                own[k].append(1 - clock.seconds / stats.seconds)
                if k:
                    ratios[k].append(plain.stats.decode_seconds / stats.decode_seconds)
    return {
        "workload": name,
        "drafter": decoder.drafter.name,
        "prompts": len(prompts),
        "texts_identical": bool(same),
        "by_draft_tokens": {
            str(k): {
                "tokens_per_second": spread(speeds[k]),
                "acceptance_length": statistics.mean(accepted[k]),
                "own_time_share": statistics.median(own[k]),
                **({"over_plain": spread(ratios[k])} if k else {}),
            }
            for k in lengths
        },
    }


@contextmanager
def without_native_ops() -> Iterator[None]:
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "off"
    try:
        yield
    finally:
        del os.environ[VARIABLE]
        if before is not None:
            os.environ[VARIABLE] = before


def print_costs(precision: str, costs: dict[str, dict[str, float]]) -> None:
    line = "  ".join(f"T({w}) {cost['median']:.1f}" for w, cost in costs.items())
    print(f"{precision}: {line} ms; 8 over 1: {costs['8']['median'] / costs['1']['median']:.2f}")


def write_costs(bundles: list[str], repeats: int, name: str) -> None:
    """Cost by width alone, the bundles in turn so that a slow moment hits all of them."""
    parts: dict[str, list[dict[str, dict[str, float]]]] = {}
    for _ in range(repeats):
        for path in bundles:
            precision = Bundle.open(path).manifest.target.precision
            with SpeculativeDecoder.from_bundle(path, drafter="none") as decoder:
                parts.setdefault(precision, []).append(call_costs(decoder, 1))
            if precision == "w8a8" and native_ops():
                with (
                    without_native_ops(),
                    SpeculativeDecoder.from_bundle(path, drafter="none") as decoder,
                ):
                    parts.setdefault(PLAIN_W8A8, []).append(call_costs(decoder, 1))
    runs = {
        precision: {
            width: spread(part[width]["median"] for part in measured) for width in measured[0]
        }
        for precision, measured in parts.items()
    }
    for precision, costs in runs.items():
        print_costs(precision, costs)
    print(write_result(name, {"call_milliseconds": runs}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", nargs="+")
    parser.add_argument("--workload", default="quoting")
    parser.add_argument("--drafter", default="ngram")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--costs-only", action="store_true", help="calls by width, no decoding")
    parser.add_argument("--name", default="costs", help="of the result file of --costs-only")
    arguments = parser.parse_args()
    if arguments.costs_only:
        write_costs(arguments.bundles, arguments.repeats, arguments.name)
        return
    runs = []
    for path in arguments.bundles:
        precision = Bundle.open(path).manifest.target.precision
        with SpeculativeDecoder.from_bundle(path, drafter=arguments.drafter) as decoder:
            costs = call_costs(decoder, arguments.repeats)
            compared = against_plain(decoder, arguments.workload, arguments.repeats)
        runs.append({"precision": precision, "call_milliseconds": costs, **compared})
        print_costs(precision, costs)
        for k, found in compared["by_draft_tokens"].items():
            over = f", {found['over_plain']['median']:.2f} x plain" if "over_plain" in found else ""
            print(
                f"  k={k:>2}: {found['tokens_per_second']['median']:6.1f} tokens/s{over},"
                f" acceptance length {found['acceptance_length']:.2f},"
                f" own time {found['own_time_share']:.2%}"
            )
        print(f"  texts identical: {compared['texts_identical']}")
    name = f"speculation_{arguments.workload}"
    if arguments.drafter != "ngram":
        name += f"_{arguments.drafter}"
    print(write_result(name, {"new_tokens": TOKENS, "runs": runs}))


if __name__ == "__main__":
    main()
