"""The main job on real weights: SmolLM2-135M in every precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from identity import against_plain, against_source
from measuring import workload
from specplug import Bundle, EngineOptions, SamplingParams, Step
from specplug.bundle import Manifest
from specplug.engines import load
from specplug.export import export_bundle
from specplug.export.source import open_source
from specplug.verification import VerifyOptions, verify
from specplug.weights import MODELS, default_folder

pytestmark = pytest.mark.weights

WEIGHTS = default_folder() / MODELS["smollm2-135m"].filename
EXPORTS = {"fp32": {"self_draft": "int4"}, "w8a8": {}, "int4": {}}
PROMPTS = [workload("specbench-dev")[2]["prompt"], workload("quoting")[0]["prompt"]]
TOKENS = 48


@pytest.fixture(scope="session")
def weights() -> Path:
    if not WEIGHTS.exists():
        pytest.skip(f"no {WEIGHTS.name}: run `specplug pull smollm2-135m`, which needs the network")
    return WEIGHTS


@pytest.fixture(scope="session", params=list(EXPORTS))
def exported(request, weights: Path, tmp_path_factory) -> tuple[Path, Manifest]:
    bundle = tmp_path_factory.mktemp("smollm2") / f"{request.param}.bundle"
    return bundle, export_bundle(weights, bundle, precision=request.param, **EXPORTS[request.param])


def test_export_is_measured(exported: tuple[Path, Manifest]) -> None:
    _, manifest = exported
    target = manifest.target
    assert target.parameters == 134_515_008
    assert max(target.parity.model_dump().values()) < 1e-3
    assert target.provenance.licence == "apache-2.0"
    assert target.quality is not None
    most_kl = {"fp32": 1e-6, "w8a8": 0.05, "int4": 0.3}[target.precision]
    assert 0 <= target.quality.mean_kl < most_kl
    assert target.min_width <= 2


def test_rows_do_not_depend_on_width(exported: tuple[Path, Manifest]) -> None:
    bundle, manifest = exported
    engine = load(bundle, manifest.target, EngineOptions())
    tokens = Bundle.open(bundle).tokenizer().encode_prompt(PROMPTS[1], chat=False)[:64]

    def rows(width: int) -> np.ndarray:
        made = []
        for start in range(0, len(tokens) - width + 1, width):
            piece = np.array([tokens[start : start + width]])
            made.append(
                engine.forward(Step(tokens=piece, past=np.array([start]))).logits()[0].copy()
            )
        return np.concatenate(made)

    whole = rows(64)
    for width in range(manifest.target.min_width, 17):
        narrow = rows(width)
        assert np.array_equal(narrow, whole[: len(narrow)]), width


def test_speculative_text_is_plain_text(exported: tuple[Path, Manifest], weights: Path) -> None:
    bundle, manifest = exported
    plain, compared = against_plain(bundle, PROMPTS, {"max_tokens": TOKENS})
    assert len(compared) == (6 if manifest.draft else 3)
    assert not any(found["differing"] for found in compared)
    assert sum(map(len, plain)) > TOKENS
    if manifest.target.precision == "fp32":
        tokenizer = Bundle.open(bundle).tokenizer()
        encoded = [tokenizer.encode_prompt(prompt) for prompt in PROMPTS]
        found = against_source(open_source(weights).reference(), encoded, plain)
        assert found["tokens"] == sum(map(len, plain))
        assert found["differing_beyond_margin"] == 0


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sampled_text_is_plain_text(exported: tuple[Path, Manifest], temperature: float) -> None:
    sampling = SamplingParams(
        temperature=temperature, top_p=0.9, repetition_penalty=1.1, presence_penalty=0.2, seed=1
    )
    plain, compared = against_plain(
        exported[0], PROMPTS[:1], {"max_tokens": TOKENS, "sampling": sampling}
    )
    assert not any(found["differing"] for found in compared)
    assert len(plain[0]) > TOKENS // 4


def test_verify(exported: tuple[Path, Manifest], weights: Path) -> None:
    options = VerifyOptions(sequences=300, source=weights)
    checks = list(verify(exported[0], options, lambda name, share: None))
    assert [check.passed for check in checks] == [True] * 8, checks
