"""llama.cpp for the race, by llama-cpp-python: a GGUF file.

Drafter: ``lookup``, its prompt lookup with 2 tokens, what its documentation finds better than its
default of 10 on machines without a GPU.
"""

from __future__ import annotations

import llama_cpp
import numpy as np
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

import worker


def main() -> None:
    asked = worker.arguments(__doc__)
    lookup = asked.drafter == "lookup"
    llama = llama_cpp.Llama(
        asked.model,
        n_ctx=asked.context,
        n_threads=asked.threads,
        n_threads_batch=asked.threads,
        flash_attn=True,
        draft_model=LlamaPromptLookupDecoding(num_pred_tokens=2) if lookup else None,
        logits_all=lookup,  # without, it fails in texts longer than a batch
        verbose=False,
    )
    stop = {*asked.stop}

    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        llama.reset()  # or what the last prompt has in common with this one would be kept
        new: list[int] = []
        for token in llama.generate(prompt, temp=0.0):
            delivered()
            new.append(token)
            if len(new) == max_tokens or token in stop:
                break
        return new

    def next_logits() -> worker.Next:
        llama.reset()

        def step(token: int, past: int) -> np.ndarray:
            llama.eval([token])
            row = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
            return np.ctypeslib.as_array(row, shape=(llama.n_vocab(),))

        return step

    worker.serve(asked, ["llama-cpp-python"], generate, next_logits)


if __name__ == "__main__":
    main()
