"""transformers for the race, in fp32: a folder of write_hf_folder.py.

Drafters: ``lookup``, prompt lookup with 10 tokens, and ``draft``, assisted generation with a
second folder, at its defaults.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers
from transformers.generation.streamers import BaseStreamer

import worker


def main() -> None:
    asked = worker.arguments(__doc__)
    torch.set_num_threads(asked.threads)
    model = _load(asked.model)
    drafting: dict[str, Any] = {}
    if asked.drafter == "lookup":
        drafting["prompt_lookup_num_tokens"] = 10
    elif asked.drafter == "draft":
        drafting["assistant_model"] = _load(asked.draft)

    @torch.inference_mode()
    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        made = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=asked.stop or None,
            pad_token_id=0,
            streamer=_Streamer(delivered),
            **drafting,
        )
        return made[0, len(prompt) :].tolist()

    def next_logits() -> worker.Next:
        cache = transformers.DynamicCache()

        @torch.inference_mode()
        def step(token: int, past: int) -> np.ndarray:
            return model(torch.tensor([[token]]), past_key_values=cache).logits.numpy()

        return step

    worker.serve(asked, ["transformers", "torch"], generate, next_logits)


def _load(folder: str) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False
    )
    return model.eval()


class _Streamer(BaseStreamer):
    """Given the prompt first, then every token."""

    def __init__(self, delivered: worker.Delivered) -> None:
        self._delivered, self._past_prompt = delivered, False

    def put(self, value: torch.Tensor) -> None:
        if self._past_prompt:
            self._delivered()
        self._past_prompt = True

    def end(self) -> None:
        pass


if __name__ == "__main__":
    main()
