"""SmolLM2's own GGUF file is tokenized as llama.cpp tokenizes it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers

from specplug.export.gguf_file import read_gguf
from specplug.export.gguf_vocabulary import gguf_tokenizer
from specplug.weights import MODELS, default_folder

WEIGHTS = default_folder() / MODELS["smollm2-135m"].filename
CASES = Path(__file__).parent / "data" / "llama" / "smollm2-tokens.json"


@pytest.mark.weights
def test_every_text_has_llama_cpps_tokens() -> None:
    if not WEIGHTS.exists():
        pytest.skip(f"no {WEIGHTS.name}: run `specplug pull smollm2-135m`, which needs the network")
    made = gguf_tokenizer(read_gguf(WEIGHTS).metadata)
    assert made is not None
    assert made.stop_token_ids == (0, 2, 4)
    backend = tokenizers.Tokenizer.from_str(made.json)
    cases = json.loads(CASES.read_bytes())["cases"]
    assert len(cases) == 29
    ours = [backend.encode(case["text"], add_special_tokens=False).ids for case in cases]
    assert ours == [case["ids"] for case in cases]
    for case in cases:
        assert backend.decode(case["ids"], skip_special_tokens=False) == case["text"]
