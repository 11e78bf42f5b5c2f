"""ONNX Runtime GenAI behind a line protocol, run in its own environment.

    genai_worker.py MODEL_FOLDER

Reads JSON lines {"token_ids": [...], "max_tokens": n}, decodes greedily, and answers each with
{"token_ids": [...], "first_token_seconds": s, "decode_seconds": s}.
"""

from __future__ import annotations

import json
import sys
import time

import onnxruntime_genai as og


def main(folder: str) -> None:
    model = og.Model(folder)
    print(json.dumps({"onnxruntime-genai": og.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        prompt = request["token_ids"]
        started = time.perf_counter()
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=len(prompt) + request["max_tokens"])
        generator = og.Generator(model, params)
        generator.append_tokens(prompt)
        generator.generate_next_token()
        first = time.perf_counter()
        while not generator.is_done():
            generator.generate_next_token()
        ended = time.perf_counter()
        tokens = [int(token) for token in generator.get_sequence(0)][len(prompt) :]
        answer = {
            "token_ids": tokens,
            "first_token_seconds": first - started,
            "decode_seconds": ended - first,
        }
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(sys.argv[1])
