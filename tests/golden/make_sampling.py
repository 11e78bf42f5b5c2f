"""Write ``sampling.json``: which token Python chooses from rows that need no file.

A row's logits are floor((e - 1) * 4096) / 1024, e the exponential numbers of the noise with the
key (row, 7) at position 0, so that another language has them, too, to the last bit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from specplug import Proposal, SamplingParams
from specplug.engines.host import HostScores
from specplug.noise import Noise, Purpose
from specplug.sampler import Sampler
from specplug.sampling import distribution

PARAMS = (
    {},
    {"temperature": 1.0},
    {"temperature": 0.3},
    {"temperature": 0.8, "top_k": 7},
    {"temperature": 1.5, "top_k": 50, "top_p": 0.9},
    {"temperature": 0.7, "top_p": 0.5},
    {"temperature": 2.0, "top_p": 0.99},
    {"temperature": 1.0, "min_p": 0.1},
    {"temperature": 1.0, "typical_p": 0.5},
    {"temperature": 1.2, "top_k": 300, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.9},
    {"repetition_penalty": 1.4},
    {"temperature": 0.9, "repetition_penalty": 0.7, "presence_penalty": 1.5},
    {"frequency_penalty": 3.0, "no_repeat_ngram": 2},
)


def main() -> None:
    """Write the file beside this one."""
    random = np.random.default_rng(9)
    cases = []
    for number in range(260):
        params = PARAMS[number % len(PARAMS)] | {"seed": int(random.integers(0, 2**63))}
        vocab = int(random.choice([17, 260, 1000, 20_000]))
        noise = Noise(number, 7).exponentials(0, Purpose.token, vocab)
        row = (np.floor((noise - 1) * 4096) / 1024).astype(np.float32)
        history = random.integers(0, 17, size=int(random.integers(1, 30)))
        prompt_tokens = int(random.integers(1, len(history) + 1))
        parsed = SamplingParams(**params)
        sampler = Sampler(parsed, vocab_size=vocab, prompt_tokens=prompt_tokens)
        verdict = sampler.judge(HostScores(row[None, None]), history, Proposal())
        case = {
            "row": number,
            "vocab": vocab,
            "params": params,
            "history": history.tolist(),
            "prompt_tokens": prompt_tokens,
            "token": verdict.bonus,
        }
        if parsed.temperature and not parsed.shapes_logits:
            case["kept"] = len(distribution(row, parsed).weights)
        cases.append(case)
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "sampling.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
