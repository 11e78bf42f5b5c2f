"""Answers questions about GGUF files with llama.cpp; runs in an environment of its own.

A question is a line of JSON on standard input, and so is each answer on standard output:
``{"path", "texts", "special"}`` gives token ids, the tokens that end an answer, and each
token's text; ``{"path", "tokens"}`` gives logits, f32[T, V] in base64.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys

import llama_cpp as llama
import numpy as np


@llama.llama_log_callback
def silent(level: int, text: bytes, data: object) -> None:
    del level, text, data


def load(path: str, *, vocab_only: bool):
    parameters = llama.llama_model_default_params()
    parameters.vocab_only = vocab_only
    model = llama.llama_model_load_from_file(path.encode(), parameters)
    if not model:
        raise ValueError("llama.cpp does not load it")
    return model


def tokens_of(vocabulary, text: str, special: bool) -> list[int]:
    data = text.encode()
    room = len(data) * 4 + 8
    found = (llama.llama_token * room)()
    count = llama.llama_tokenize(vocabulary, data, len(data), found, room, special, True)
    if count < 0:
        raise ValueError(f"llama_tokenize gives {count}")
    return list(found[:count])


def piece_of(vocabulary, token: int) -> str:
    buffer = ctypes.create_string_buffer(512)
    size = llama.llama_token_to_piece(vocabulary, token, buffer, 512, 0, False)
    return buffer.raw[: max(size, 0)].hex()


def vocabulary(question: dict) -> dict:
    model = load(question["path"], vocab_only=True)
    found = llama.llama_model_get_vocab(model)
    count = llama.llama_vocab_n_tokens(found)
    answer = {
        "tokens": [tokens_of(found, text, question["special"]) for text in question["texts"]],
        "ends": [token for token in range(count) if llama.llama_vocab_is_eog(found, token)],
        "pieces": [piece_of(found, token) for token in range(count)],
    }
    llama.llama_model_free(model)
    return answer


def logits(question: dict) -> dict:
    tokens = question["tokens"]
    model = load(question["path"], vocab_only=False)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = max(len(tokens), 32)
    parameters.n_threads = parameters.n_threads_batch = 1
    parameters.type_k = parameters.type_v = 0  # f32
    parameters.flash_attn_type = 0
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ValueError("llama.cpp makes no context of it")
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for place, token in enumerate(tokens):
        batch.token[place], batch.pos[place], batch.logits[place] = token, place, 1
        batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
    if llama.llama_decode(context, batch):
        raise ValueError("llama_decode fails")
    rows = np.ctypeslib.as_array(llama.llama_get_logits(context), (len(tokens), size)).copy()
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return {"logits": base64.b64encode(rows.tobytes()).decode(), "shape": rows.shape}


def main() -> None:
    llama.llama_log_set(silent, ctypes.c_void_p(0))
    llama.llama_backend_init()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = logits(question) if "tokens" in question else vocabulary(question)
        except ValueError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
