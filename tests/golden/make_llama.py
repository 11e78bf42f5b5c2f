"""Write ``tests/data/llama/*.json``: token ids, ends and logits, as llama.cpp computes them.

Run it with the Python of .venv from the repository's root, after ``benchmarks/peers/setup.sh
llama``, when a type, a text or a model is added.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from specplug.export.gguf_pretokenizers import TYPES
from tests_support import llama
from tests_support.llama_models import EVERY, MODELS, TOKENS, write_model

Ask = Callable[[dict[str, Any]], dict[str, Any]]


def write(name: str, items: list[str]) -> None:
    (llama.REFERENCES / name).write_text("[\n" + ",\n".join(items) + "\n]\n")


def pre_types(ask: Ask, folder: Path) -> None:
    """A line a text: the different results, and for each type which of them it is."""
    keys = llama.byte_level_keys(None)
    answers = []
    for name in TYPES:
        path = folder / f"{name}.gguf"
        llama.write_file(path, keys | {"tokenizer.ggml.pre": name})
        answers.append(ask({"path": str(path), "texts": llama.TEXTS, "special": True})["tokens"])
    lines = [json.dumps(list(TYPES))]
    for place in range(len(llama.TEXTS)):
        found = [answer[place] for answer in answers]
        different = [ids for n, ids in enumerate(found) if ids not in found[:n]]
        lines.append(json.dumps([different, [different.index(ids) for ids in found]]))
    write("pre-types.json", lines)


def vocabularies(ask: Ask, folder: Path) -> None:
    lines = []
    for name, keys in llama.vocabularies().items():
        path = folder / "vocabulary.gguf"
        llama.write_file(path, keys)
        texts = [*llama.TEXTS, *llama.SPECIAL_TEXTS]
        answer = ask({"path": str(path), "texts": texts, "special": True})
        pieces = llama.digest([bytes.fromhex(piece) for piece in answer["pieces"]])
        lines.append(json.dumps([name, answer["ends"], pieces, answer["tokens"]]))
    write("vocabularies.json", lines)


def models(ask: Ask, folder: Path) -> None:
    lines = []
    for name in MODELS:
        path = folder / "model.gguf"
        write_model(path, name)
        logits = ask({"path": str(path), "tokens": TOKENS})["logits"][::EVERY]
        lines.append(json.dumps([name, base64.b64encode(logits.tobytes()).decode()]))
    write("logits.json", lines)


def main() -> None:
    """Ask llama.cpp, and write the files."""
    with tempfile.TemporaryDirectory() as folder, llama.judge() as ask:
        for part in (pre_types, vocabularies, models):
            part(ask, Path(folder))


if __name__ == "__main__":
    main()
