"""A worker of the race without a model: counts on from the prompt's last token, by 1."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks/peers"))

import worker

VOCAB = 50


def main() -> None:
    asked = worker.arguments(__doc__)
    print("a library says hello on standard output", flush=True)

    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        if prompt[-1] >= VOCAB:
            raise SystemExit("no such token")
        new: list[int] = []
        while len(new) < max_tokens and not {*new} & {*asked.stop}:
            new.append((prompt[-1] + 1 + len(new)) % VOCAB)
            delivered()
        return new

    def next_logits() -> worker.Next:
        return lambda token, past: np.eye(VOCAB, dtype=np.float32)[(token + 1) % VOCAB]

    worker.serve(asked, ["numpy"], generate, next_logits)


if __name__ == "__main__":
    main()
