"""Heads on every engine: what each is alone, and that they are one head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specplug import EngineError, EngineOptions, SamplingParams, SpeculativeDecoder
from specplug.bundle import Bundle
from specplug.drafters import HeadSource, TreeDrafter
from specplug.engines import load
from specplug.engines.contract import EngineContract, Make, assert_close
from specplug.engines.pytorch_head import PyTorchHeadEngine
from specplug.export import export_bundle, graphs
from specplug.export.head import Head
from specplug.export.head_component import open_head_graph
from specplug.export.head_graph import build_head
from specplug.export.source import Source
from specplug.export.speculators import open_head
from specplug.opening import open_draft, open_parts
from specplug.types import HIDDEN_STATES, Engine, Step
from tests_support.heads import NAMES, WRITTEN, Fed, copy_head

PROMPT = list(b"the quick brown fox jumps over the lazy dog. ")
ENGINES = ("ort", "standard", "pytorch")
ROWS = 3


def engine_of(head: Head, name: str, folder: Path, max_batch: int = 1) -> Any:
    """A head on one of :data:`ENGINES`."""
    if name == "pytorch":
        return PyTorchHeadEngine(head, max_batch=max_batch)
    graph = build_head(head, name)
    if not folder.exists():
        graphs.save(graph, folder)
    return open_head_graph(folder, graph, head.shape, name, max_batch)


class TestHeads(EngineContract):
    """The suite over random weights."""

    exact = False

    @pytest.fixture(params=ENGINES)
    def make(
        self, request: pytest.FixtureRequest, head_source: Source, tmp_path: Path, one_thread: None
    ) -> Make:
        torch.manual_seed(0)
        shape = open_head(WRITTEN / "llama", head_source).head.shape
        head = Head(replace(shape, vocab_size=shape.input_vocab_size))

        def make(max_batch: int = 1) -> Engine:
            return Fed(engine_of(head, request.param, tmp_path / "head", max_batch))

        return make


# --- they are one head ------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NAMES)
def trio(
    request: pytest.FixtureRequest, head_source: Source, tmp_path_factory: pytest.TempPathFactory
) -> Any:
    head = open_head(WRITTEN / request.param, head_source).head
    folder = tmp_path_factory.mktemp("trio")
    engines = [engine_of(head, name, folder / name, ROWS) for name in ENGINES]
    yield head, engines
    for engine in engines:
        engine.close()


calls = st.lists(
    st.one_of(
        st.builds(
            dict,
            features=st.integers(0, 7),
            fed_back=st.integers(0, 3),
            rows=st.sampled_from([(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)]),
            taken_back=st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS),
            left_out=st.integers(0, 9),
            seed=st.integers(0, 99),
        ).filter(lambda call: call["features"] + call["fed_back"] > 0),
        st.permutations(range(ROWS)).map(lambda order: tuple(order[:2])),
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=calls)
def test_all_engines_say_the_same(
    trio: tuple[Head, list[Any]], one_thread: None, calls: Sequence[Any]
) -> None:
    """Context, own steps, both, taken back and moved, in rows of any length."""
    head, engines = trio
    held = [0] * ROWS
    own = np.ones((ROWS, 1, head.shape.hidden_size), dtype=np.float32)
    for call in calls:
        if isinstance(call, tuple):
            one, other = call
            for engine in engines:
                if held[one]:
                    engine.load(other, 0, engine.save(one, 0, held[one]))
            held[other] = held[one]
            continue
        first, count = call["rows"]
        random = np.random.default_rng(call["seed"])
        features, fed_back = call["features"], call["fed_back"]
        width, rows = features + fed_back, range(first, first + count)
        past = [max(held[row] - call["taken_back"][row], 0) for row in rows]
        step = Step(
            tokens=random.integers(0, head.shape.input_vocab_size, size=(count, width)),
            past=np.array(past),
            first_row=first,
            scores_from=min(call["left_out"], width - 1),
            states={
                "features": random.normal(size=(count, features, head.shape.features)).astype("f4"),
                "fed_back": own[first : first + count].repeat(fed_back, axis=1),
            },
        )
        found = [engine.forward(step) for engine in engines]
        for scores in found[1:]:
            assert_close(scores.logits(), found[0].logits())
            assert_close(scores.hidden(HIDDEN_STATES), found[0].hidden(HIDDEN_STATES))
        own[first : first + count] = found[0].hidden(HIDDEN_STATES)[:, -1:]
        for row, before in zip(rows, past, strict=True):
            held[row] = before + width


@pytest.fixture(scope="module")
def standard_bundle(head_target: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bundle = tmp_path_factory.mktemp("standard") / "fp32.bundle"
    export_bundle(
        head_target, bundle, precision="fp32", dialect="standard", draft=WRITTEN / "llama"
    )
    return bundle


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize(
    "sampling", [SamplingParams(), SamplingParams(temperature=0.8, seed=4)], ids=["greedy", "drawn"]
)
def test_all_engines_draft_the_same(
    sampling: SamplingParams,
    branching: bool,
    head_bundles: dict[str, Path],
    standard_bundle: Path,
    one_thread: None,
) -> None:
    bundle, standard = Bundle.open(head_bundles["fp32-ort"]), Bundle.open(standard_bundle)
    opened: dict[str, Callable[[], TreeDrafter]] = {
        "ort": lambda: open_draft(bundle, EngineOptions()),
        "standard": lambda: open_draft(standard, EngineOptions()),
        "pytorch": lambda: open_draft(
            bundle, EngineOptions(engine="pytorch", sources=(WRITTEN / "llama",))
        ),
    }
    texts, drafts = [], []
    for make in opened.values():
        drafter = make()
        proposed: list[Any] = []
        parts = open_parts(bundle, "none") | {"drafter": drafter}
        with SpeculativeDecoder(**parts, draft_tokens=5) as decoder:
            decoder.stop_token_ids = frozenset()
            decoder._trees = branching
            propose = drafter.propose

            def noting(*given: Any, propose: Any = propose, proposed: list[Any] = proposed) -> Any:
                made = propose(*given)
                proposed.append((made.tokens, made.parents))
                return made

            drafter.propose = noting  # type: ignore[method-assign]
            texts.append(decoder.generate(PROMPT, max_tokens=40, sampling=sampling).token_ids)
        drafts.append(proposed)
    assert texts[0] == texts[1] == texts[2]
    assert drafts[0] == drafts[1] == drafts[2]
    assert sum(len(tokens) for tokens, _ in drafts[0]) > 50


# --- PyTorch ----------------------------------------------------------------------------------


def test_options_of_the_command_line(
    head_bundles: dict[str, Path], head_target: Path, one_thread: None
) -> None:
    """Target, head or both on PyTorch, their checkpoints among the sources."""
    texts = []
    for options in (
        {},
        {"draft_engine": "pytorch", "sources": (WRITTEN / "llama",)},
        {
            "target_engine": "pytorch",
            "draft_engine": "pytorch",
            "sources": (head_target, WRITTEN / "llama"),
        },
    ):
        with SpeculativeDecoder.from_bundle(
            head_bundles["fp32-ort"], drafter="head", draft_tokens=4, **options
        ) as decoder:
            source = decoder.drafter.sources[0]  # type: ignore[attr-defined]
            assert isinstance(source, HeadSource)
            assert source.engine.spec.name == options.get("draft_engine", "onnxruntime")
            texts.append(decoder.generate(PROMPT, max_tokens=24).token_ids)
    assert texts[0] == texts[1] == texts[2]


def test_what_it_cannot_open(head_bundles: dict[str, Path], head_target: Path) -> None:
    for name, sources, message in (
        ("fp32-ort", (), "source 'llama' of this component .* name it with --source"),
        ("fp32-ort", (head_target,), "source 'llama' of this component is not among"),
        ("w8a8-ort", (WRITTEN / "qwen3",), "computes in fp32, fp16, bf16, and this .* in w8a8"),
    ):
        with pytest.raises(EngineError, match=message):
            SpeculativeDecoder.from_bundle(
                head_bundles[name], drafter="head", draft_engine="pytorch", sources=sources
            )


def test_an_embedding_that_is_the_targets(
    head_target: Path, head_source: Source, tmp_path: Path, one_thread: None
) -> None:
    """Is looked for at the target's source, and only then."""
    from safetensors.torch import load_file, save_file

    folder, bundle = copy_head(tmp_path / "head"), tmp_path / "made.bundle"
    weights = load_file(folder / "model.safetensors")
    weights.pop("embed_tokens.weight")
    save_file(weights, folder / "model.safetensors")
    export_bundle(head_target, bundle, precision="fp32", draft=folder)
    component = Bundle.open(bundle).manifest.draft
    assert component is not None
    with pytest.raises(EngineError, match=f"source '{head_target.name}' of this component"):
        load(bundle, component, EngineOptions(engine="pytorch", sources=(folder,)))
    found = load(bundle, component, EngineOptions(engine="pytorch", sources=(folder, head_target)))
    wanted = load(bundle, component, EngineOptions())
    step = Step(
        tokens=np.array([PROMPT]),
        past=np.array([0]),
        states={"features": np.ones((1, len(PROMPT), 192), dtype=np.float32)},
    )
    assert_close(found.forward(step).logits(), wanted.forward(step).logits())
    found.close()
    wanted.close()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_stay_near(dtype: torch.dtype, head_source: Source, one_thread: None) -> None:
    """Of types that ONNX Runtime knows on GPUs only."""
    step = Step(
        tokens=np.array([PROMPT]),
        past=np.array([0]),
        states={"features": np.ones((1, len(PROMPT), 192), dtype=np.float32)},
    )
    found = []
    for kind in (torch.float32, dtype):
        head = open_head(WRITTEN / "llama", head_source).head
        engine = PyTorchHeadEngine(head.to(kind))
        scores = engine.forward(step)
        assert scores.logits().dtype == scores.hidden(HIDDEN_STATES).dtype == np.float32
        found.append(scores.logits().copy())
        engine.close()
    difference = np.abs(found[1] - found[0]).max() / np.abs(found[0]).max()
    assert 0 < difference < 0.05
