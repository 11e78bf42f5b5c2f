"""OpenVINO GenAI for the race: a folder of write_openvino_folder.py, or with ``draft`` two of them.

Drafters: ``lookup``, its prompt lookup with 5 tokens and n-grams of 3, as in its samples, and
``draft`` with 5 tokens, its default. The scheduler is the one that it takes for low latency,
except that nothing is kept of earlier prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai

import worker

_UNLIMITED = 2**31  # tokens of a batch: a prompt is one call


def main() -> None:
    asked = worker.arguments(__doc__)
    properties = {"INFERENCE_NUM_THREADS": asked.threads}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.enable_prefix_caching = False
    scheduler.max_num_batched_tokens = _UNLIMITED
    drafting: dict[str, Any] = {}
    if asked.drafter == "lookup":
        drafting["prompt_lookup"] = True
    elif asked.drafter == "draft":
        drafting["draft_model"] = openvino_genai.draft_model(asked.draft, "CPU", **properties)
    pipeline = openvino_genai.LLMPipeline(
        str(Path(asked.model) / "model.gguf"),
        "CPU",
        scheduler_config=scheduler,
        **drafting,
        **properties,
    )

    def generate(prompt: list[int], max_tokens: int, delivered: worker.Delivered) -> list[int]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = max_tokens
        config.do_sample = False
        config.stop_token_ids = set(asked.stop)
        if drafting:
            config.num_assistant_tokens = 5
        if asked.drafter == "lookup":
            config.max_ngram_size = 3
        prompt_ids = openvino.Tensor(np.array([prompt], dtype=np.int64))
        result = pipeline.generate(prompt_ids, config)  # a streamer would slow it by a tenth
        delivered(result.perf_metrics.get_ttft().mean / 1000)
        return result.tokens[0]

    def next_logits() -> worker.Next:
        compiled = openvino.Core().compile_model(
            Path(asked.model) / "openvino_model.xml", "CPU", properties
        )
        request = compiled.create_infer_request()

        def step(token: int, past: int) -> np.ndarray:
            inputs = {
                "input_ids": np.array([[token]], dtype=np.int64),
                "attention_mask": np.ones((1, past + 1), dtype=np.int64),
                "position_ids": np.array([[past]], dtype=np.int64),
                "beam_idx": np.zeros(1, dtype=np.int32),
            }
            return request.infer(inputs)["logits"]

        return step

    worker.serve(asked, ["openvino-genai", "openvino"], generate, next_logits)


if __name__ == "__main__":
    main()
