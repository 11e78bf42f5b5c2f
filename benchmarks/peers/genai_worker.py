"""ONNX Runtime GenAI for the race: a folder of its model builder.

Drafters: ``lookup``, the n-gram decoding of its documentation with adaptive width, and ``draft``,
for a folder of write_genai_pair.py.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnxruntime_genai as og

import worker

_SPECULATIVE = {
    "lookup": {
        "ngram_size": 4,
        "max_draft_tokens": 8,
        "ngram_chained_lookup": True,
        "min_adaptive_k": 2,
    }
}


def main() -> None:
    asked = worker.arguments(__doc__)
    options: dict[str, Any] = {"intra_op_num_threads": asked.threads}
    models = ["decoder"]
    if asked.drafter == "draft":  # two pools that spin take each other a third of the time
        options["session.intra_op.allow_spinning"] = "0"
        models.append("draft")
    overlay = {name: {"session_options": options} for name in models}
    config = og.Config(asked.model)
    config.overlay(json.dumps({"model": {"eos_token_id": asked.stop, **overlay}}))
    model = og.Model(config)

    def generator(most: int) -> og.Generator:
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=most)
        if asked.drafter in _SPECULATIVE:
            params.set_speculative_options(**_SPECULATIVE[asked.drafter])
        return og.Generator(model, params)

    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        decoding = generator(len(prompt) + max_tokens)
        decoding.append_tokens(np.array(prompt, dtype=np.int32))
        while not decoding.is_done():
            decoding.generate_next_token()
            delivered()
        new = decoding.get_sequence(0)[len(prompt) :].tolist()
        ended = len(new) < max_tokens  # by a stop token, which it keeps to itself
        return [*new, *asked.stop[:ended]]

    def next_logits() -> worker.Next:
        decoding = generator(asked.context)

        def step(token: int, past: int) -> np.ndarray:
            decoding.append_tokens(np.array([token], dtype=np.int32))
            return decoding.get_logits()

        return step

    worker.serve(asked, ["onnxruntime-genai", "onnxruntime"], generate, next_logits)


if __name__ == "__main__":
    main()
