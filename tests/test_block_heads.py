"""Heads that guess a block of tokens at a call (DFlash): the library's, drafted with, exact."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from specplug import EngineError, EngineOptions, ExportError, SamplingParams, SpeculativeDecoder
from specplug.batching import BatchDecoder
from specplug.bundle import Bundle
from specplug.drafters import BlockSource
from specplug.engines import load
from specplug.engines.contract import assert_close
from specplug.engines.pytorch_head import open_head_module
from specplug.export import export_bundle, graphs, plan_export
from specplug.export.block_graph import build_block_head
from specplug.export.block_head import BlockHead
from specplug.export.head_component import open_head_graph
from specplug.export.source import Source
from specplug.export.speculators import open_head
from specplug.opening import open_parts
from specplug.types import Engine, Step
from tests_support.batching import drain, ids
from tests_support.command import specplug
from tests_support.heads import WRITTEN, copy_head, features_of, own_text

NAMES = ("dflash", "dflash-whole")
PROMPT = list(b"the quick brown fox jumps over the lazy dog. ")
GREEDY = SamplingParams()
COUPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=4)
REJECTION = SamplingParams(temperature=1.0, seed=2, acceptance="rejection")
ROWS = 3


def reference(name: str) -> dict[str, Any]:
    return dict(np.load(WRITTEN / name / "reference.npz"))


def read(name: str, source: Source) -> BlockHead:
    """A head of the library's, with the embedding and LM head that it had of its own target."""
    head, saved = open_head(WRITTEN / name, source).head, reference(name)
    assert isinstance(head, BlockHead)
    head.embed_tokens.weight.data = torch.from_numpy(saved["embedding"])
    head.lm_head.weight.data = torch.from_numpy(saved["lm_head"])
    return head


def engine_of(head: BlockHead, name: str, folder: Path, max_batch: int = 1) -> Engine:
    if name == "pytorch":
        return open_head_module(head, max_batch=max_batch)
    graph = build_block_head(head)
    graphs.save(graph, folder)
    return open_head_graph(folder, graph, head.shape, "standard", max_batch)


def block_step(features: Any, past: int, token: int, head: BlockHead) -> Step:
    """Context, and a block after it."""
    size = head.shape.block
    block = [token, *[head.shape.mask_token] * (size - 1)]
    return Step(
        tokens=np.array([[0] * len(features) + block]),
        past=np.array([past]),
        scores_from=len(features),
        states={"features": np.asarray(features, dtype=np.float32)[None]},
        block=size,
    )


# --- the head is the library's ----------------------------------------------------------------


@pytest.mark.parametrize("engine", ["standard", "pytorch"])
@pytest.mark.parametrize("name", NAMES)
def test_engines_give_the_librarys_logits(
    name: str, engine: str, head_source: Source, tmp_path: Path
) -> None:
    """At every place of a text: read up to there at once, or a token at a time, back and forth."""
    head, saved = read(name, head_source), reference(name)
    tokens, features, logits = (saved[key] for key in ("tokens", "features", "logits"))
    opened = engine_of(head, engine, tmp_path / "graph")
    forwards, backwards = range(len(logits)), range(len(logits) - 1, -1, -1)
    for place in forwards:
        new = features[max(place - 1, 0) : place]
        step = block_step(new, place - len(new), tokens[place], head)
        assert_close(opened.forward(step).logits()[0], logits[place])
    for place in backwards:
        step = block_step(features[:place], 0, tokens[place], head)
        assert_close(opened.forward(step).logits()[0], logits[place])
    opened.close()


calls = st.lists(
    st.builds(
        dict,
        features=st.integers(0, 7),
        block=st.booleans(),
        rows=st.sampled_from([(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (0, 3)]),
        taken_back=st.lists(st.integers(0, 5), min_size=ROWS, max_size=ROWS),
        seed=st.integers(0, 99),
    ).filter(lambda call: call["features"] or call["block"]),
    min_size=1,
    max_size=9,
)


@pytest.fixture(scope="module")
def pair(head_source: Source, tmp_path_factory: pytest.TempPathFactory) -> Any:
    head = read("dflash", head_source)
    folder = tmp_path_factory.mktemp("pair")
    engines = [engine_of(head, name, folder / name, ROWS) for name in ("standard", "pytorch")]
    yield head, engines
    for engine in engines:
        engine.close()


@given(calls=calls)
def test_engines_say_the_same(
    pair: tuple[BlockHead, list[Engine]], calls: Sequence[dict[str, Any]]
) -> None:
    """Context and blocks, taken back, in rows of any length."""
    head, engines = pair
    held = [0] * ROWS
    for call in calls:
        first, count = call["rows"]
        random = np.random.default_rng(call["seed"])
        rows = range(first, first + count)
        past = [max(held[row] - call["taken_back"][row], 0) for row in rows]
        block = head.shape.block if call["block"] else 0
        width = call["features"] + block
        shape = (count, call["features"], head.shape.features)
        step = Step(
            tokens=random.integers(0, head.shape.input_vocab_size, size=(count, width)),
            past=np.array(past),
            first_row=first,
            scores_from=call["features"] if block else width - 1,
            states={"features": random.normal(size=shape).astype("f4")},
            block=block,
        )
        found = [engine.forward(step).logits().copy() for engine in engines]
        if block:  # of context alone they mean nothing
            assert_close(found[1], found[0])
        for row, before in zip(rows, past, strict=True):
            held[row] = before + call["features"]  # a block's entries are of no use


def test_what_engines_refuse(
    pair: tuple[BlockHead, list[Engine]], head_bundles: dict[str, Path]
) -> None:
    head, engines = pair
    features = np.zeros((3, head.shape.features))
    for engine in engines:
        wide = block_step(features, 0, 5, head)
        with pytest.raises(EngineError, match=r"one of features for every token but the block's 3"):
            engine.forward(Step(tokens=wide.tokens, past=wide.past, states=wide.states, block=3))
        with pytest.raises(EngineError, match=r"a block of 8 in a call of 7 tokens: .* inside a"):
            engine.forward(Step(tokens=wide.tokens, past=wide.past, states=wide.states, block=8))
    bundle = Bundle.open(head_bundles["fp32-ort"])
    target = load(bundle.path, bundle.manifest.target, EngineOptions())
    with pytest.raises(EngineError, match=r"a block of 2 in a call of 4 tokens: .* none here"):
        target.forward(Step(tokens=np.array([[1, 2, 3, 4]]), past=np.array([0]), block=2))
    target.close()


# --- bundles ----------------------------------------------------------------------------------

BUNDLES = {
    "fp32-ort": ("fp32", "ort", "fp32"),
    "w8a8-ort": ("w8a8", "ort", "int8"),
    "int4-ort": ("int4", "ort", "int4"),
    "fp16-standard": ("fp16", "standard", "fp16"),
}


@pytest.fixture(scope="module")
def bundles(head_target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("blocks")
    for number, (name, (precision, dialect, _)) in enumerate(BUNDLES.items()):
        export_bundle(
            head_target,
            folder / name,
            precision=precision,
            dialect=dialect,
            draft=WRITTEN / NAMES[number % 2],
        )
    return {name: folder / name for name in BUNDLES}


@pytest.mark.parametrize("name", BUNDLES)
def test_what_is_written(name: str, bundles: dict[str, Path], head_target: Path) -> None:
    manifest = Bundle.open(bundles[name]).manifest
    draft, (precision, dialect, rounded) = manifest.draft, BUNDLES[name]
    assert draft is not None
    assert draft.head is not None
    assert draft.head.block is not None
    assert (manifest.target.dialect, draft.dialect) == (dialect, "standard")
    assert (draft.architecture, draft.precision, draft.cache.layers) == ("dflash", rounded, 2)
    assert draft.head.block.model_dump() == {
        "size": 4,
        "mask_token": 7,
        "first_guess": 1 if draft.vocab_size == 96 else 0,
    }
    assert max(draft.parity.model_dump().values()) < 1e-3
    head = WRITTEN / draft.provenance.source
    plan = plan_export(
        head_target, bundles[name].with_name("x"), precision=precision, dialect=dialect, draft=head
    )
    written = {file.path: file.bytes for file in manifest.all_files()}
    assert plan.files.keys() == written.keys() | {"specplug.json"}
    for path, size in written.items():
        if not path.endswith(".onnx"):
            assert plan.files[path] == pytest.approx(size, rel=0.05, abs=5_000), path
    shown = specplug("inspect", bundles[name]).stdout
    guesses = 3 if draft.vocab_size == 96 else 4
    assert f"a head that guesses {draft.vocab_size} of 260 tokens, {guesses} at a call" in shown


@pytest.mark.parametrize("sampling", [GREEDY, COUPLED], ids=["greedy", "coupled"])
@pytest.mark.parametrize("name", BUNDLES)
def test_text_is_plain_decodings(
    name: str, sampling: SamplingParams, bundles: dict[str, Path]
) -> None:
    with SpeculativeDecoder.from_bundle(bundles[name], drafter="none") as plain:
        wanted = plain.generate(PROMPT, max_tokens=40, sampling=sampling)
    for drafter, tokens in (("head", 1), ("head", 6), ("auto", 8), ("auto", "auto")):
        with SpeculativeDecoder.from_bundle(
            bundles[name], drafter=drafter, draft_tokens=tokens
        ) as decoder:
            found = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
            again = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
        assert found.token_ids == again.token_ids == wanted.token_ids, (drafter, tokens)
        assert found.stats.drafted or tokens == "auto"


@pytest.mark.parametrize("sampling", [GREEDY, COUPLED], ids=["greedy", "coupled"])
def test_batches(sampling: SamplingParams, bundles: dict[str, Path]) -> None:
    """Each row's head reads its own row; prompts that are known begin in the middle."""
    prompts = [PROMPT * 4, PROMPT * 4, PROMPT, PROMPT[7:]]
    with SpeculativeDecoder.from_bundle(bundles["fp32-ort"], drafter="none") as plain:
        wanted = [plain.generate(p, max_tokens=30, sampling=sampling).token_ids for p in prompts]
    with BatchDecoder.from_bundle(
        bundles["fp32-ort"], drafter="head", draft_tokens=3, max_batch=3
    ) as decoder:
        waiting = [decoder.submit(p, max_tokens=30, sampling=sampling) for p in prompts]
        found = drain(decoder)
    assert [tuple(ids(found[generation])) for generation in waiting] == wanted
    assert all(generation.stats.drafted for generation in waiting)


class Recording(BlockSource):
    """Notes what it guesses from."""

    def guesses(self, place: tuple[int, ...]) -> Any:
        found = super().guesses(place)
        if found:
            assert self._logits is not None
            noted = self._context.copy(), len(place), self._logits[len(place)].copy()
            self.noted = [*getattr(self, "noted", []), noted]
        return found


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, COUPLED, REJECTION])
@pytest.mark.parametrize("bundle", ["fp32-ort", "learned"])
def test_every_guess_is_what_the_head_says(
    bundle: str,
    sampling: SamplingParams,
    branching: bool,
    bundles: dict[str, Path],
    learned_block: tuple[Path, BlockHead, list[list[int]]],
    head_source: Source,
) -> None:
    """Over rounds, rejections and trees: the module, run anew over the text, gives its logits."""
    path, module, prompt = learned_block[0], learned_block[1], learned_block[2][0]
    if bundle != "learned":
        path, prompt = bundles[bundle], (PROMPT * 8)[:300]  # longer than a piece of reading
        opened_head = open_head(WRITTEN / "dflash", head_source).head
        assert isinstance(opened_head, BlockHead)
        module = opened_head
    with SpeculativeDecoder(**open_parts(Bundle.open(path), "head"), draft_tokens=6) as decoder:
        decoder.stop_token_ids = frozenset()
        (opened,) = decoder.drafter.sources  # type: ignore[attr-defined]
        recording = Recording(opened.engine, opened._block, opened._vocabulary)
        decoder.drafter.sources = [recording]  # type: ignore[attr-defined]
        decoder._trees = branching
        decoder.generate(prompt, max_tokens=24, sampling=sampling)
    assert len(recording.noted) > 12
    features = features_of(
        head_source.reference(), recording.noted[-1][0].tolist(), module.shape.layers
    )
    first = max(len(prompt) - 256, 0)  # what was said earlier it does not read
    for context, depth, logits in recording.noted:
        end = len(context) - 1
        step = block_step(features[0, first:end], 0, context[-1], module)
        with torch.no_grad():
            wanted, _ = module(
                features[:, first:end],
                torch.from_numpy(step.tokens[:, end - first :]),
                torch.arange(step.tokens.shape[1])[None],
            )
        assert_close(logits, wanted[0, depth + module.shape.first_guess].numpy())


# --- one that knows its target ----------------------------------------------------------------


@pytest.fixture(scope="module")
def learned_block(
    head_target: Path, head_source: Source, head_model: Any, tmp_path_factory: Any
) -> tuple[Path, BlockHead, list[list[int]]]:
    """A bundle whose head has learnt the target's answers to some prompts by heart."""
    from safetensors.torch import load_file, save_file

    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, size=12).tolist() for _ in range(3)]
    folder = tmp_path_factory.mktemp("learned-block")
    head = open_head(WRITTEN / "dflash-whole", head_source).head
    assert isinstance(head, BlockHead)
    torch.manual_seed(0)
    examples = [example for prompt in prompts for example in _blocks(head, head_model, prompt)]
    rate = torch.optim.AdamW(head.parameters(), lr=3e-3)
    for step in range(240):
        features, block, wanted = examples[step % len(examples)]
        size = head.shape.block
        ends = torch.arange(8, features.shape[1], 2)
        rows = torch.arange(features.shape[1])[None].expand(len(ends), -1)
        seen = torch.cat([rows < ends[:, None], torch.ones(len(ends), size, dtype=bool)], dim=1)
        logits, _ = head(
            features.expand(len(ends), -1, -1),
            block[ends],
            torch.cat([rows, ends[:, None] + torch.arange(size)], dim=1),
            torch.where(seen, 0.0, -torch.inf)[:, None, None].expand(-1, -1, size, -1),
        )
        loss = functional.cross_entropy(logits.flatten(0, 1), wanted[ends].flatten())
        rate.zero_grad()
        loss.backward()
        rate.step()
    copy_head(folder / "head", "dflash-whole")
    stored = load_file(folder / "head" / "model.safetensors")
    names = {*stored, "embed_tokens.weight", "lm_head.weight"}
    trained = {name: w.detach().clone() for name, w in head.state_dict().items() if name in names}
    save_file(trained, folder / "head" / "model.safetensors")
    export_bundle(head_target, folder / "b", precision="fp32", draft=folder / "head")
    return folder / "b", head.eval(), prompts


def _blocks(head: BlockHead, model: Any, prompt: list[int]) -> Any:
    """The target's states of a text; by place the block after it, and what the block is to say."""
    shape, length = head.shape, 60
    text = torch.tensor(own_text(model, prompt, length + shape.block + 1))
    places = torch.arange(length)
    block = torch.full((length, shape.block), shape.mask_token)
    block[:, 0] = text[places]
    ahead = torch.arange(shape.block) + 1 - shape.first_guess
    features = features_of(model, text[:length].tolist(), shape.layers)
    return [(features, block, text[places[:, None] + ahead])]


@pytest.mark.parametrize("drafter", ["head", "auto"])
@pytest.mark.parametrize("trees", [False, True])
def test_a_head_that_learnt_the_target_is_accepted(
    trees: bool,
    drafter: str,
    learned_block: tuple[Path, BlockHead, list[list[int]]],
    head_model: Any,
) -> None:
    path, _, prompts = learned_block
    accepted = rounds = 0
    with SpeculativeDecoder.from_bundle(path, drafter=drafter, draft_tokens=4) as decoder:
        decoder.stop_token_ids = frozenset()
        decoder._trees = trees
        for prompt in prompts:
            result = decoder.generate(prompt, max_tokens=40)
            assert [*prompt, *result.token_ids] == own_text(head_model, prompt, 40)
            accepted += decoder.drafter.counts["head"].accepted  # type: ignore[attr-defined]
            rounds += len(result.stats.drafted_per_round)
    assert accepted / rounds > (1.0 if drafter == "head" else 0.2)


def test_on_pytorch(
    learned_block: tuple[Path, BlockHead, list[list[int]]], head_target: Path
) -> None:
    """The same drafts; where embedding and LM head are the target's, they are looked for there."""
    path, _, prompts = learned_block
    texts = []
    for options in (
        {},
        {"draft_engine": "pytorch", "sources": (path.parent / "head", head_target)},
    ):
        with SpeculativeDecoder.from_bundle(
            path, drafter="head", draft_tokens=4, **options
        ) as decoder:
            result = decoder.generate(prompts[0], max_tokens=30)
        texts.append((result.token_ids, result.stats.accepted_per_round))
    assert texts[0] == texts[1]


def test_embedding_and_lm_head_are_the_targets(head_source: Source) -> None:
    head = open_head(WRITTEN / "dflash-whole", head_source).head
    table = head_source.weights["model.embed_tokens.weight"].values()
    scores = head_source.weights.get("lm_head.weight")
    assert torch.equal(head.embed_tokens.weight, table)
    assert torch.equal(head.lm_head.weight, table if scores is None else scores.values())


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mask_token_id": None}, "mask_token_id is None: .* one of the target's 260 tokens"),
        ({"mask_token_id": 260}, "mask_token_id is 260"),
        ({"block_size": 1}, "block_size is 1: 2 to 64 can be given"),
        ({"aux_hidden_state_layer_ids": [0, 1, 3]}, r"layers \[0, 1, 3\] read, .* has 3"),
        (
            {"transformer_layer_config__layer_types": ["full_attention", "sliding_attention"]},
            "layers of type 'sliding_attention': only 'full_attention'",
        ),
        ({"transformer_layer_config__model_type": "llama"}, "kind 'llama': only 'qwen3'"),
        ({"transformer_layer_config__num_hidden_layers": 3}, "cannot be read: .*layer_types"),
        (
            {
                "transformer_layer_config__num_hidden_layers": 3,
                "transformer_layer_config__layer_types": ["full_attention"] * 3,
            },
            r"does not fit its configuration: layers\.2\..* is missing",
        ),
        ({"transformer_layer_config__hidden_size": 96}, "with hidden size 96, and the .* has 64"),
        (
            {"speculators_config__verifier__name_or_path": "somebody/other"},
            "was made for somebody/other, and the target is tiny-target",
        ),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], message: str, head_target: Path, tmp_path: Path
) -> None:
    folder = copy_head(tmp_path / "head", "dflash", **change)
    with pytest.raises(ExportError, match=message):
        export_bundle(head_target, tmp_path / "b", precision="fp32", draft=folder)
    assert not (tmp_path / "b").exists()


def test_it_is_not_trained_further(head_target: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "tell"}\n')
    done = specplug(
        "distill", head_target, "--prompts", prompts, "-o", tmp_path / "head",
        "--start-from", WRITTEN / "dflash",
    )  # fmt: skip
    assert done.returncode == 1
    assert "guesses 4 tokens at a call: only heads of kind eagle3" in " ".join(done.stderr.split())
