"""Real weights: Qwen2.5-Coder-0.5B with SmolLM2-135M as its draft, whose tokens are others."""

from __future__ import annotations

from pathlib import Path

import pytest

from measuring import workload
from specplug import Bundle, SamplingParams, SpeculativeDecoder
from specplug.export import export_bundle
from specplug.weights import MODELS, default_folder

pytestmark = [pytest.mark.weights, pytest.mark.slow]

TARGET, DRAFT = (
    default_folder() / MODELS[name].filename for name in ("qwen2.5-coder-0.5b", "smollm2-135m")
)
PROMPTS = [
    "Write a Python function that returns the n-th Fibonacci number.",
    "List the planets of the solar system, then repeat the list in reverse order.",
    workload("specbench-dev")[2]["prompt"],
    "Erkläre in zwei Sätzen, warum der Himmel blau ist. 🌍",
]
TOKENS = 40


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for path, name in ((TARGET, "qwen2.5-coder-0.5b"), (DRAFT, "smollm2-135m")):
        if not path.exists():
            pytest.skip(f"no {path.name}: run `specplug pull {name}`, which needs the network")
    bundle = tmp_path_factory.mktemp("pair") / "qwen-smollm2.bundle"
    export_bundle(TARGET, bundle, precision="w8a8", draft=DRAFT)
    return bundle


def test_text_is_plain_decodings(pair: Path) -> None:
    draft = Bundle.open(pair).manifest.draft
    assert draft is not None
    assert draft.own_tokenizer is not None
    assert draft.own_tokenizer.shared_tokens == 39_237
    assert 0.9 < draft.own_tokenizer.agreement < 0.98
    samplings = [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_p=0.95, seed=1),
    ]
    with SpeculativeDecoder.from_bundle(pair, drafter="none") as plain:
        wanted = [
            plain.generate(prompt, max_tokens=TOKENS, sampling=sampling).token_ids
            for prompt in PROMPTS
            for sampling in samplings
        ]
    rounds = tokens = 0
    with SpeculativeDecoder.from_bundle(pair, drafter="universal", draft_tokens=4) as decoder:
        found = []
        for prompt in PROMPTS:
            for sampling in samplings:
                result = decoder.generate(prompt, max_tokens=TOKENS, sampling=sampling)
                found.append(result.token_ids)
                rounds += len(result.stats.drafted_per_round)
                tokens += len(result.stats.drafted_per_round) + result.stats.accepted
    assert found == wanted
    print(f"acceptance length {tokens / rounds:.2f}")
    assert tokens / rounds > 1.5
