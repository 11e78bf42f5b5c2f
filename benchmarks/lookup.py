"""What looking up earlier text costs: a round over 100,000 tokens of history.

    .venv/bin/python benchmarks/lookup.py

A round reads the committed tokens into the automata of the text and of the history, and asks both
for guesses along a draft of eight. The texts are random words with the frequencies of language, in
which phrases come again; a third of the new text is copied from the history.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from measuring import spread, write_result
from specplug import History, Request, SamplingParams
from specplug.drafters import HistorySource, SuffixSource
from specplug.sampler import Sampler

VOCAB, TEXT, PROMPT, ROUNDS, DRAFT = 49_152, 2_000, 500, 2_000, 8


def words(random: np.random.Generator, count: int) -> list[int]:
    """Tokens with Zipf's frequencies, a fifth of them in phrases that came before."""
    tokens = (random.zipf(1.2, size=count) % VOCAB).tolist()
    for start in range(20, count - 20, 100):
        source = int(random.integers(0, start - 10))
        tokens[start : start + 20] = tokens[source : source + 20]
    return tokens[:count]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--history", type=int, default=100_000)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    history = History(2 * arguments.history)  # the newer half of it is filled
    earlier = [words(random, TEXT) for _ in range(arguments.history // TEXT)]
    started = time.perf_counter()
    for text in earlier:
        history.add("", text)
    adding = (time.perf_counter() - started) / sum(map(len, earlier))

    sources = (SuffixSource(), HistorySource(history))
    tokens = words(random, PROMPT + 4 * ROUNDS)
    for start in range(PROMPT, len(tokens) - 60, 120):
        text = earlier[int(random.integers(len(earlier)))]
        at = int(random.integers(TEXT - 40))
        tokens[start : start + 40] = text[at : at + 40]
    context = np.array(tokens, dtype=np.int64)
    sampler = Sampler(SamplingParams(), vocab_size=VOCAB, prompt_tokens=PROMPT)
    for source in sources:
        source.reset(Request(sampler=sampler, prompt_tokens=PROMPT))
        source.begin(context[:PROMPT])
    reading: list[float] = []
    drafting: list[float] = []
    drafted = 0
    for round_ in range(ROUNDS):
        end = PROMPT + 4 * round_ + 4
        started = time.perf_counter()
        places = [source.begin(context[:end]) for source in sources]
        guesses = [source.guesses(place) for source, place in zip(sources, places, strict=True)]
        reading.append(1e6 * (time.perf_counter() - started) / 4)
        started = time.perf_counter()
        for source, place, found in zip(sources, places, guesses, strict=True):
            for _ in range(DRAFT):
                if not found:
                    break
                place = source.step(place, found[0].token)
                found = source.guesses(place)
                drafted += 1
        drafting.append(1e6 * (time.perf_counter() - started))
    result = {
        "history_tokens": len(history),
        "microseconds_to_add_a_token": 1e6 * adding,
        "microseconds_a_committed_token": spread(reading),
        "microseconds_a_draft": spread(drafting),
        "microseconds_a_drafted_token": sum(drafting) / max(drafted, 1),
    }
    for name, value in result.items():
        print(name, f"{value['median']:.1f}" if isinstance(value, dict) else f"{value:.2f}")
    print(write_result("lookup", result))


if __name__ == "__main__":
    main()
