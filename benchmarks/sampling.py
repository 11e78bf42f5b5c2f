"""What choosing a token costs: one row, one core, by settings; beside transformers' processors.

    .venv/bin/python benchmarks/sampling.py [--vocab 150000] [--rows 200]

Rows are logits of a random language (normal, of standard deviation 3, a few tokens raised), a new
one each time; the settings take turns on each row. A row is what the target judges: shaping,
truncations, noise and the choice. The rejection rule's row also has the draft's to compare with.
transformers' share is its processors and warpers followed by softmax and multinomial, on one
thread; it is given in the same turns where the settings have a counterpart.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from measuring import spread, write_result
from specplug import Proposal, SamplingParams
from specplug.engines.host import HostScores
from specplug.sampler import Sampler

HISTORY = 512  # tokens of the sequence so far, for the penalties
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "untruncated": {"temperature": 1.0},
    "top-k 50": {"temperature": 0.8, "top_k": 50},
    "top-p 0.9": {"temperature": 0.8, "top_p": 0.9},
    "top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "min-p 0.05": {"temperature": 0.8, "min_p": 0.05},
    "repetition penalty, top-k 50": {"temperature": 0.8, "top_k": 50, "repetition_penalty": 1.1},
    "rejection, untruncated": {"temperature": 1.0, "acceptance": "rejection"},
    "rejection, top-k 50": {"temperature": 0.8, "top_k": 50, "acceptance": "rejection"},
}


def ours(params: SamplingParams, vocab_size: int, history: np.ndarray) -> Callable[[Any], None]:
    """Judge a row: under the rejection rule, that of a drafted token that is refused."""
    sampler = Sampler(params, vocab_size=vocab_size, prompt_tokens=1)
    drafts = params.acceptance == "rejection"
    unlikely = np.full(vocab_size, 1.0 / vocab_size)
    unlikely[0] += 1e6  # so that its one drafted token is refused
    proposal = Proposal((0,), (unlikely,)) if drafts else Proposal()

    def judge(row: np.ndarray) -> None:
        sampler.judge(HostScores(row[None, None]), history, proposal)

    return judge


def theirs(params: SamplingParams, history: np.ndarray) -> Callable[[Any], None] | None:
    """Of transformers, the same processors; None where it has no counterpart."""
    if params.temperature == 0 or params.acceptance != "coupled":
        return None
    made: list[Any] = []
    if params.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    made.append(TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        made.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        made.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        made.append(MinPLogitsWarper(params.min_p))
    processors, tokens = LogitsProcessorList(made), torch.from_numpy(history)[None]

    def choose(row: np.ndarray) -> None:
        scores = processors(tokens, torch.from_numpy(row)[None])
        torch.multinomial(torch.softmax(scores, dim=-1), 1)

    return choose


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--vocab", type=int, default=150_000)
    parser.add_argument("--rows", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    history = random.integers(0, arguments.vocab, size=HISTORY)
    ways = {}
    for name, settings in SETTINGS.items():
        params = SamplingParams(**settings)
        ways[name, "specplug"] = ours(params, arguments.vocab, history)
        if other := theirs(params, history):
            ways[name, "transformers"] = other
    taken: dict[tuple[str, str], list[float]] = {way: [] for way in ways}
    with torch.inference_mode():
        for _ in range(arguments.rows):
            row = random.normal(scale=3, size=arguments.vocab).astype(np.float32)
            row[random.integers(0, arguments.vocab, size=8)] += 12
            for way, choose in ways.items():
                started = time.perf_counter()
                choose(row)
                taken[way].append(1e3 * (time.perf_counter() - started))
    figures: dict[str, dict[str, Any]] = {name: {} for name in SETTINGS}
    for (name, tool), times in taken.items():
        figures[name][tool] = spread(times)
    for name, tools in figures.items():
        print(
            name, *(f"{tool} {found['median']:.3f} ms" for tool, found in tools.items()), sep=": "
        )
    result = {"vocab_size": arguments.vocab, "unit": "ms a row", "settings": figures}
    print(write_result("sampling", result))


if __name__ == "__main__":
    main()
