"""Scores that are not numbers, and draft models that fail, in C++."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from specplug.bundle import MANIFEST
from tests_support import native as support
from tests_support.native import Native, NativeError
from tests_support.tiny import write_checkpoint

Made = Callable[[str, Callable[[Path], object]], Path]
NOT_NUMBERS = "the model's scores are not numbers (NaN, or infinite)"
PROMPT = [5, 6, 7, 5, 6, 7, 5]
BAD = {239: np.nan, 241: np.inf, 251: -np.inf}
"""Tokens, and what the logits become after a call that has one of them; no answer here has one."""
FAILING = 219
"""A call with this token fails in ONNX Runtime."""
GOOD = 150
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalized": {"repetition_penalty": 1.1},
    "sampled": {"temperature": 1.0, "seed": 3},
    "nucleus": {"temperature": 0.8, "top_p": 0.9, "top_k": 20},
}


def spoil(bundle: Path, to: Path, component: str) -> Path:
    """A copy whose component adds to its logits what its input's tokens say, hashes put right."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / MANIFEST).read_text())
    part = manifest[component]
    path = to / part["graph"]
    model = onnx.load(path, load_external_data=False)
    for node in model.graph.node:
        node.output[:] = ["own_logits" if name == "logits" else name for name in node.output]
    entries = np.zeros(part["vocab_size"], dtype=np.int64)
    table = np.zeros((1 + len(BAD), 1), dtype=np.float32)
    for place, (token, value) in enumerate(BAD.items(), 1):
        entries[token], table[place] = place, value
    entries[FAILING] = 1 << 40
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(entries, "entries"),
            numpy_helper.from_array(table, "spoiling"),
            numpy_helper.from_array(np.array([1]), "over_tokens"),
        ]
    )
    model.graph.node.extend(
        [
            helper.make_node("Gather", ["entries", "input_ids"], ["entry"]),
            helper.make_node("Gather", ["spoiling", "entry"], ["spoilt"]),
            helper.make_node("ReduceSum", ["spoilt", "over_tokens"], ["more"], keepdims=1),
            helper.make_node("Add", ["own_logits", "more"], ["logits"]),
        ]
    )
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    path.write_bytes(model.SerializeToString())
    for file in part["files"]:
        if file["path"] == part["graph"]:
            file["bytes"] = path.stat().st_size
            file["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to


@pytest.fixture(scope="session")
def spoilt(tiny_bundles: dict[str, Path], tiny_source: Path, made_once: Made) -> dict[str, Path]:
    """Bundles with a target, or a draft, that fails at some tokens; the draft shares the cache."""
    from specplug.export import export_bundle

    def export(folder: Path) -> None:
        like = write_checkpoint(folder / "like", seed=3, hidden_size=32)
        export_bundle(tiny_source, folder / "own", precision="fp32", draft=like)
        options = {"precision": "fp32", "dialect": "standard", "self_draft": "layers=1"}
        export_bundle(tiny_source, folder / "shared", **options)
        spoil(folder / "shared", folder / "target", "target")
        spoil(folder / "shared", folder / "shared-draft", "draft")
        spoil(folder / "own", folder / "own-draft", "draft")

    folder = made_once("spoilt", export)
    return {
        name: folder / name for name in ("own", "shared", "target", "shared-draft", "own-draft")
    }


@pytest.fixture
def target(native_build: None, spoilt: dict[str, Path]) -> Iterator[Native]:
    with Native(spoilt["target"], load_draft=True, history_tokens=0) as native:
        yield native


def ask(native: Native, prompt: list[int], drafter: str, **options: Any) -> Any:
    return native.ask(
        "generate",
        prompt=prompt,
        drafter=drafter,
        draft_tokens=0 if drafter == "none" else 3,
        max_tokens=12,
        stop_token_ids=[],
        **options,
    )


@pytest.mark.parametrize("drafter", ["none", "ngram", "self"])
@pytest.mark.parametrize("way", WAYS)
def test_scores_that_are_not_numbers_end_the_answer(target: Native, way: str, drafter: str) -> None:
    """By name, in the prompt's own call or later; the next answer is as if nothing had been."""
    expected = ask(target, PROMPT, drafter, fresh=True, **WAYS[way])["tokens"]
    for token in BAD:
        with pytest.raises(NativeError) as caught:
            ask(target, [*PROMPT, token], drafter, **WAYS[way])
        assert (caught.value.status, NOT_NUMBERS in caught.value.message) == (support.ENGINE, True)
        assert ask(target, PROMPT, drafter, **WAYS[way])["tokens"] == expected
        with pytest.raises(NativeError) as caught:  # the first token of the answer
            ask(target, PROMPT, drafter, forced_tokens={1: token}, **WAYS[way])
        assert NOT_NUMBERS in caught.value.message
        assert ask(target, PROMPT, drafter, **WAYS[way])["tokens"] == expected


def test_an_engine_that_fails_spoils_nothing(target: Native) -> None:
    expected = ask(target, PROMPT, "none", fresh=True)["tokens"]
    with pytest.raises(NativeError, match="ONNX Runtime failed running the graph"):
        ask(target, [*PROMPT, FAILING], "none")
    assert ask(target, PROMPT, "none")["tokens"] == expected


@pytest.mark.parametrize("drafter", ["draft", "auto"])
@pytest.mark.parametrize("name", ["own", "shared"])
@pytest.mark.parametrize("way", WAYS)
def test_a_draft_model_that_fails_changes_no_text(
    native_build: None, spoilt: dict[str, Path], name: str, drafter: str, way: str
) -> None:
    """It is counted, says why, and is left out; after three times for good."""
    with (
        Native(spoilt[f"{name}-draft"], load_draft=True, history_tokens=0) as native,
        Native(spoilt[name], history_tokens=0) as whole,
    ):

        def both(token: int, **options: Any) -> Any:
            """Where the draft reads the token: the prompt is in a shared cache already."""
            prompt = PROMPT
            if name == "shared":
                options["forced_tokens"] = {0: token}
            else:
                prompt = [*PROMPT, token]
            options |= WAYS[way]
            expected = ask(whole, prompt, "none", **{**options, "fresh": True})
            found = ask(native, prompt, drafter, **options)
            assert found["tokens"] == expected["tokens"]
            return found["stats"]

        for number, token in enumerate([*BAD, FAILING, GOOD]):
            stats = both(token, fresh=not number)
            assert drafter == "auto" or stats["drafted"] == 0
            assert stats["draft_failures"] == (number < len(BAD))
            assert (NOT_NUMBERS in stats["draft_error"]) == (number < len(BAD))
        stats = both(GOOD, fresh=True)  # another decoder's
        assert (stats["draft_failures"], stats["draft_error"]) == (0, "")
        assert stats["drafted"] > 0
        stats = both(FAILING, fresh=True)
        assert stats["draft_error"].startswith("ONNX Runtime failed running the graph")
