"""specplug for the race: BUNDLE, decoded plainly or with any of its drafters."""

from __future__ import annotations

import numpy as np

import specplug
import worker
from specplug.feeding import feed


def main() -> None:
    asked = worker.arguments(__doc__)
    decoder = specplug.SpeculativeDecoder.from_bundle(
        asked.model,
        drafter=asked.drafter,
        threads=asked.threads,
        history=specplug.History(0),  # earlier repeats of a prompt must not help
    )
    decoder.stop_token_ids = frozenset(asked.stop)

    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        new: list[int] = []
        for tokens in decoder.rounds(prompt, max_tokens=max_tokens):
            delivered()
            new += [token.id for token in tokens]
        return new

    def next_logits() -> worker.Next:
        def step(token: int, past: int) -> np.ndarray:
            return feed(decoder.target, [token], past=past, scored=1).logits()[0, 0]

        return step

    worker.serve(asked, ["specplug", "onnxruntime"], generate, next_logits)


if __name__ == "__main__":
    main()
