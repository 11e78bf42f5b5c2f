"""Learned heads: what they are is the library's, what they guess the module's, text is exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from specplug import (
    BundleError,
    EngineError,
    EngineOptions,
    ExportError,
    SamplingParams,
    SpeculativeDecoder,
)
from specplug.batching import BatchDecoder
from specplug.bundle import Bundle
from specplug.drafters import HeadSource
from specplug.engines import load
from specplug.engines.contract import assert_close
from specplug.engines.host import HostScores
from specplug.export import export_bundle, graphs, measuring, plan_export
from specplug.export.head import Head
from specplug.export.head_graph import build_head
from specplug.export.source import Source, open_source
from specplug.export.speculators import open_head
from specplug.opening import open_parts
from specplug.types import HIDDEN_STATES, Engine, Step
from tests_support.command import specplug
from tests_support.drafting import request
from tests_support.families import NAMED, OTHERS
from tests_support.heads import (
    LAYERS,
    NAMES,
    WRITTEN,
    copy_head,
    expected_logits,
    features_of,
    own_text,
    save,
    train,
)
from tests_support.tiny import write_checkpoint

PROMPT = list(b"the quick brown fox jumps over the lazy dog. ")
LONG = PROMPT * 8  # longer than a piece of reading
GREEDY = SamplingParams()
COUPLED = SamplingParams(temperature=0.8, top_p=0.95, seed=4)
PENALISED = SamplingParams(repetition_penalty=1.3)
DIALECTS = ("ort", "standard")


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headed") / "tiny-target"
    return write_checkpoint(folder, num_hidden_layers=LAYERS)


@pytest.fixture(scope="module")
def source(target: Path) -> Source:
    return open_source(target)


@pytest.fixture(scope="module")
def bundles(target: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("heads")
    made = {}
    for name, head in (("fp32-ort", "llama"), ("w8a8-ort", "qwen3"), ("fp16-standard", "llama")):
        precision, dialect = name.split("-")
        made[name] = folder / f"{name}.bundle"
        export_bundle(
            target, made[name], precision=precision, dialect=dialect, draft=WRITTEN / head
        )
    return made


def reference(name: str) -> dict[str, Any]:
    return dict(np.load(WRITTEN / name / "reference.npz"))


def graph_of(head: Head, dialect: str, folder: Path, precision: str = "fp32") -> Engine:
    from specplug.engines.ort import OrtEngine
    from specplug.engines.ort_standard import OrtStandardEngine
    from specplug.export.precision import apply_precision

    graph = build_head(head, dialect)
    apply_precision(graph, precision, dialect=dialect)
    graphs.save(graph, folder)
    made = OrtStandardEngine if dialect == "standard" else OrtEngine
    return made(
        folder / graphs.GRAPH,
        cache=graphs.cache_layout(graph),
        vocab_size=head.shape.vocab_size,
        max_length=head.shape.max_length,
        min_width=1,
        input_vocab_size=head.shape.input_vocab_size,
        options=EngineOptions(),
    )


def run(engine: Engine, tokens: Any, past: int, **states: Any) -> tuple[Any, Any]:
    step = Step(
        tokens=np.array(tokens, dtype=np.int64)[None],
        past=np.array([past]),
        states={name: np.array(rows, dtype=np.float32)[None] for name, rows in states.items()},
    )
    scores = engine.forward(step)
    return scores.logits()[0].copy(), scores.hidden(HIDDEN_STATES)[0].copy()


# --- the head is the library's ----------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_module_gives_the_librarys_logits(name: str, source: Source) -> None:
    """Of a context, and of steps on the head's own hidden states from every place of it."""
    head, saved = open_head(WRITTEN / name, source).head, reference(name)
    tokens, features = (torch.from_numpy(saved[key])[None] for key in ("tokens", "features"))
    with torch.no_grad():
        logits, own, cache = head(tokens, head.fuse(features), torch.arange(tokens.shape[1])[None])
        assert_close(logits[0].numpy(), saved["logits"][0])
        for place in range(tokens.shape[1]):
            past = tuple(part[:, :, : place + 1] for part in cache)
            hidden = own[:, place : place + 1]
            for ahead in range(1, min(3, tokens.shape[1] - place)):
                at = place + ahead
                logits, hidden, past = head(
                    tokens[:, at : at + 1], hidden, torch.tensor([[at]]), past=past
                )
                assert_close(logits[0, 0].numpy(), saved["logits"][ahead][place])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NAMES)
def test_graph_gives_the_librarys_logits(
    name: str, dialect: str, source: Source, tmp_path: Path
) -> None:
    head, saved = open_head(WRITTEN / name, source).head, reference(name)
    engine = graph_of(head, dialect, tmp_path / "graph")
    tokens, features = saved["tokens"], saved["features"]
    logits, own = run(engine, tokens, 0, features=features)
    assert_close(logits, saved["logits"][0])
    for place in range(len(tokens) - 3, -1, -1):  # each rolls back what the one before wrote
        run(engine, tokens[: place + 1], 0, features=features[: place + 1])
        hidden = own[place : place + 1]
        for ahead in (1, 2):
            at = place + ahead
            logits, hidden = run(engine, tokens[at : at + 1], at, fed_back=hidden)
            assert_close(logits[0], saved["logits"][ahead][place])
    engine.close()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_both_kinds_of_states_in_one_call(dialect: str, source: Source, tmp_path: Path) -> None:
    """Pieces, and context with drafts after it, are what they are one by one."""
    head, saved = open_head(WRITTEN / "llama", source).head, reference("llama")
    engine = graph_of(head, dialect, tmp_path / "graph")
    tokens, features = saved["tokens"], saved["features"]
    whole, own = run(engine, tokens[:8], 0, features=features[:8])
    alone, _ = run(engine, tokens[8:9], 8, fed_back=own[-1:])
    pieces = [run(engine, tokens[i : i + 3], i, features=features[i : i + 3])[0] for i in (0, 3)]
    assert_close(np.concatenate(pieces), whole[:6])
    both, _ = run(engine, tokens[6:9], 6, features=features[6:8], fed_back=own[-1:])
    assert_close(both, np.concatenate([whole[6:8], alone]))
    for states in ({}, {"features": features[:1]}, {"fed_back": features[:2]}):
        with pytest.raises(EngineError, match="a head needs one of features or fed_back"):
            run(engine, tokens[:2], 0, **states)
    with pytest.raises(EngineError, match="outside the vocabulary of 260"):
        run(engine, [260], 0, features=features[:1])
    engine.close()


@pytest.mark.parametrize(
    ("precision", "dialect", "most"),
    [("fp16", "ort", 0.01), ("w8a8", "ort", 0.1), ("int8", "standard", 0.2), ("int4", "ort", 1.0)],
)
def test_rounded_heads_stay_near(
    precision: str, dialect: str, most: float, source: Source, tmp_path: Path
) -> None:
    head, saved = open_head(WRITTEN / "llama", source).head, reference("llama")
    engine = graph_of(head, dialect, tmp_path / "graph", precision)
    logits, own = run(engine, saved["tokens"], 0, features=saved["features"])
    difference = np.abs(logits - saved["logits"][0]).max() / np.abs(saved["logits"][0]).max()
    assert 0 < difference < most
    run(engine, saved["tokens"][:1], len(own), fed_back=own[-1:])
    engine.close()


# --- what the target thinks -------------------------------------------------------------------


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in _FAST else pytest.mark.slow)
        for _FAST in [{"llama", "gpt2", "olmo2", "gemma2", "phi", "qwen3_moe", "falcon"}]
        for name in NAMED | OTHERS
    ],
)
def test_hidden_states_are_transformers(family: str, tmp_path: Path) -> None:
    """What each layer reads, of all tokens of a call, whatever scores are wanted."""
    config = {"model_type": family.split()[0]} | (NAMED | OTHERS)[family]
    source = open_source(write_checkpoint(tmp_path / "source", **config))
    tokens = np.random.default_rng(0).integers(0, source.config.vocab_size, size=12)
    wanted = features_of(source.reference(), tokens.tolist(), (0, 1))[0].numpy()
    for dialect in DIALECTS:
        graph = graphs.build_fp32(source, dialect, (0, 1))
        graphs.save(graph, tmp_path / dialect)
        engine = measuring.open_graph(
            tmp_path / dialect / graphs.GRAPH,
            dialect,
            graphs.cache_layout(graph),
            source.config.vocab_size,
            64,
        )
        step = Step(tokens=tokens[None], past=np.array([0]), scores_from=9)
        scores = engine.forward(step)
        assert scores.logits().shape[1] == 3
        assert_close(scores.hidden(HIDDEN_STATES)[0], wanted)
        engine.close()


def test_a_target_without_a_head_pays_nothing(source: Source) -> None:
    plain, given = graphs.build_fp32(source), graphs.build_fp32(source, hidden=(0, 2))
    assert [value.name for value in plain.graph.outputs] == [
        value.name for value in given.graph.outputs if value.name != HIDDEN_STATES
    ]
    assert len(list(given.graph)) == len(list(plain.graph)) + 1


# --- drafts -----------------------------------------------------------------------------------


class Recording(HeadSource):
    """Notes what it guesses from."""

    def guesses(self, place: tuple[int, ...]) -> Any:
        found = super().guesses(place)
        if found:
            noted = self._context.copy(), list(place), self._logits[place].copy()
            self.noted = [*getattr(self, "noted", []), noted]
        return found


@pytest.mark.parametrize("branching", [False, True])
@pytest.mark.parametrize("sampling", [GREEDY, COUPLED])
@pytest.mark.parametrize("which", ["the library's", "accepted"])
def test_every_guess_is_what_the_head_says(
    which: str,
    sampling: SamplingParams,
    branching: bool,
    bundles: dict[str, Path],
    learned: tuple[Path, list[list[int]]],
    source: Source,
) -> None:
    """Over rounds, rejections and trees: the module, run anew over the text, gives its logits."""
    bundle, folder, prompt = bundles["fp32-ort"], WRITTEN / "llama", LONG[:300]
    if which == "accepted":
        bundle, folder, prompt = learned[0], learned[0].parent / "head", learned[1][0]
    head, model = open_head(folder, source).head, source.reference()
    with SpeculativeDecoder(**open_parts(Bundle.open(bundle), "head"), draft_tokens=6) as decoder:
        decoder.stop_token_ids = frozenset()
        (opened,) = decoder.drafter.sources  # type: ignore[attr-defined]
        recording = Recording(opened.engine, opened._vocabulary)
        decoder.drafter.sources = [recording]  # type: ignore[attr-defined]
        decoder._trees = branching
        result = decoder.generate(prompt, max_tokens=24, sampling=sampling)
    assert len(recording.noted) > 20
    assert result.stats.accepted > 9 or which != "accepted" or sampling is COUPLED
    features = features_of(model, recording.noted[-1][0].tolist(), head.shape.layers)
    for context, drafted, logits in recording.noted:
        assert_close(logits, expected_logits(head, features, context, drafted))


def test_a_prompt_whose_beginning_was_known(bundles: dict[str, Path], source: Source) -> None:
    """The head's context begins where hidden states do."""
    head, model = open_head(WRITTEN / "llama", source).head, source.reference()
    tokens = np.array(PROMPT[:30])
    features = features_of(model, tokens.tolist(), head.shape.layers)
    with SpeculativeDecoder.from_bundle(bundles["fp32-ort"], drafter="head") as decoder:
        (opened,) = decoder.drafter.sources  # type: ignore[attr-defined]
        head_source = Recording(opened.engine, opened._vocabulary)
        head_source.reset(request(260))
        for start, stop in ((12, 20), (20, 29)):
            states = features[:, start:stop].numpy()
            scores = HostScores(np.zeros((1, 1, 260), dtype=np.float32), {HIDDEN_STATES: states})
            head_source.observe(start, tokens[start:stop].tolist(), scores)
        assert head_source.guesses(head_source.begin(tokens))
        assert head_source.guesses((5,))
        head_source.observe(29, [int(tokens[29])], scores)  # a call that nobody told it of
        assert not head_source.guesses(head_source.begin(tokens[:28]))
    for _, drafted, logits in head_source.noted:
        wanted = expected_logits(head, features[:, 12:], tokens[12:], drafted)
        assert_close(logits, wanted)


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED, COUPLED], ids=["greedy", "pen", "coupled"])
@pytest.mark.parametrize("name", ["fp32-ort", "w8a8-ort", "fp16-standard"])
def test_text_is_plain_decodings(
    name: str, sampling: SamplingParams, bundles: dict[str, Path]
) -> None:
    with SpeculativeDecoder.from_bundle(bundles[name], drafter="none") as plain:
        wanted = plain.generate(PROMPT, max_tokens=40, sampling=sampling)
    for drafter, tokens in (("head", 1), ("head", 5), ("draft", 3), ("auto", 8), ("auto", "auto")):
        with SpeculativeDecoder.from_bundle(
            bundles[name], drafter=drafter, draft_tokens=tokens
        ) as decoder:
            found = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
            again = decoder.generate(PROMPT, max_tokens=40, sampling=sampling)
        assert found.token_ids == again.token_ids == wanted.token_ids, (drafter, tokens)
        assert found.stats.drafted or tokens == "auto"


@pytest.mark.parametrize("acceptance", ["rejection", "block"])
def test_other_rules_know_what_was_drawn(acceptance: Any, bundles: dict[str, Path]) -> None:
    sampling = SamplingParams(temperature=1.0, seed=2, acceptance=acceptance)
    with SpeculativeDecoder.from_bundle(
        bundles["fp32-ort"], drafter="head", draft_tokens=4
    ) as decoder:
        rows = []
        propose = decoder.drafter.propose

        def noting(*given: Any) -> Any:
            made = propose(*given)
            rows.extend(zip(made.tokens, made.probabilities or (), strict=False))
            return made

        decoder.drafter.propose = noting  # type: ignore[method-assign]
        assert decoder.generate(PROMPT, max_tokens=40, sampling=sampling).stats.drafted
        vocabulary = set(decoder.drafter.sources[0]._vocabulary.tolist())  # type: ignore[attr-defined]
    assert rows
    for token, row in rows:
        assert row.shape == (260,)
        assert row.sum() == pytest.approx(1)
        assert row[token] > 0
        assert set(np.flatnonzero(row).tolist()) <= vocabulary


def test_tokens_beyond_the_heads_are_not_drafted(bundles: dict[str, Path]) -> None:
    """Where only tokens may come that the head does not know, it is silent."""
    known = Bundle.open(bundles["fp32-ort"]).head_vocabulary()
    assert known is not None
    for sampling in (
        SamplingParams(banned_tokens=tuple(known.tolist())),
        SamplingParams(temperature=1.0, banned_tokens=tuple(known.tolist())),
        SamplingParams(
            temperature=1.0, banned_tokens=tuple(known.tolist()), acceptance="rejection"
        ),
    ):
        with SpeculativeDecoder.from_bundle(
            bundles["fp32-ort"], drafter="head", draft_tokens=4
        ) as decoder:
            result = decoder.generate(PROMPT, max_tokens=12, sampling=sampling)
        assert not result.stats.drafted
        assert not {*result.token_ids} & {*known.tolist()}


@pytest.mark.parametrize("sampling", [GREEDY, COUPLED])
def test_batches(sampling: SamplingParams, bundles: dict[str, Path]) -> None:
    """Each row's head reads its own row; prompts that are known begin in the middle."""
    prompts = [LONG[:200], LONG[:200], PROMPT, LONG[7:90], LONG[:199]]
    with SpeculativeDecoder.from_bundle(bundles["fp32-ort"], drafter="none") as plain:
        wanted = [plain.generate(p, max_tokens=30, sampling=sampling).token_ids for p in prompts]
    with BatchDecoder.from_bundle(
        bundles["fp32-ort"], drafter="head", draft_tokens=3, max_batch=3
    ) as decoder:
        waiting = [decoder.submit(p, max_tokens=30, sampling=sampling) for p in prompts]
        found: dict[Any, list[int]] = {generation: [] for generation in waiting}
        while not decoder.idle:
            for generation, tokens in decoder.step():
                found[generation] += [token.id for token in tokens]
    assert [tuple(found[generation]) for generation in waiting] == wanted
    assert all(generation.stats.drafted for generation in waiting)
    assert waiting[4].cached_tokens == 192  # whose hidden states nobody has


def test_target_on_pytorch(bundles: dict[str, Path], target: Path) -> None:
    """The head stays on its own engine."""
    texts, accepted = [], []
    for options in ({}, {"target_engine": "pytorch", "sources": (target,)}):
        with SpeculativeDecoder.from_bundle(
            bundles["fp32-ort"], drafter="head", draft_tokens=4, **options
        ) as decoder:
            result = decoder.generate(PROMPT, max_tokens=30, sampling=COUPLED)
        texts.append(result.token_ids)
        accepted.append(result.stats.accepted_per_round)
    assert texts[0] == texts[1]
    assert accepted[0] == accepted[1]


@pytest.fixture(scope="module")
def learned(
    target: Path, source: Source, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[list[int]]]:
    """A bundle whose head was trained on the target's answers to some prompts."""
    folder = tmp_path_factory.mktemp("learned")
    random = np.random.default_rng(0)
    prompts = [random.integers(0, 256, size=12).tolist() for _ in range(6)]
    export_bundle(
        target,
        folder / "learned.bundle",
        precision="fp32",
        draft=train(folder / "head", source, prompts),
    )
    return folder / "learned.bundle", prompts


@pytest.mark.parametrize("trees", [False, True])
def test_a_head_that_learnt_the_target_is_accepted(
    trees: bool, learned: tuple[Path, list[list[int]]], source: Source
) -> None:
    bundle, prompts = learned
    model = source.reference()
    drafted = accepted = rounds = 0
    with SpeculativeDecoder.from_bundle(bundle, drafter="head", draft_tokens=3) as decoder:
        decoder.stop_token_ids = frozenset()
        decoder._trees = trees
        for prompt in prompts:
            result = decoder.generate(prompt, max_tokens=40)
            assert [*prompt, *result.token_ids] == own_text(model, prompt, 40)
            drafted += result.stats.drafted
            accepted += result.stats.accepted
            rounds += len(result.stats.drafted_per_round)
    assert 1 + accepted / rounds > 1.5


def test_auto_drafts_with_it(learned: tuple[Path, list[list[int]]]) -> None:
    bundle, prompts = learned
    with SpeculativeDecoder.from_bundle(bundle, drafter="auto", draft_tokens=3) as decoder:
        decoder.generate(prompts[0], max_tokens=40)
        counts = decoder.drafter.counts  # type: ignore[attr-defined]
    assert counts["head"].accepted > 5


# --- the bundle -------------------------------------------------------------------------------


def test_what_is_written(bundles: dict[str, Path], target: Path) -> None:
    manifest = Bundle.open(bundles["w8a8-ort"]).manifest
    draft = manifest.draft
    assert draft is not None
    assert draft.head is not None
    assert manifest.target.hidden is not None
    assert manifest.target.hidden.layers == [0, 1, 2]
    assert (draft.architecture, draft.precision, draft.vocab_size) == ("eagle3", "w8a8", 96)
    assert draft.cache.layers == 1
    assert max(draft.parity.model_dump().values()) < 1e-3
    assert draft.provenance.sha256.keys() == {"config.json", "model.safetensors"}
    shown = specplug("inspect", bundles["w8a8-ort"])
    assert "gives what its layers 0, 1, 2 read" in shown.stdout
    assert "a head that guesses 96 of 260 tokens" in shown.stdout


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "int4"])
def test_an_embedding_that_is_the_targets_is_stored_once(
    precision: Any, target: Path, source: Source, tmp_path: Path
) -> None:
    head = open_head(WRITTEN / "llama-normed", source).head
    table = source.weights["model.embed_tokens.weight"].values()
    head.embed_tokens.weight.data = table.clone()
    made = {}
    for name, folder in (
        ("its own", WRITTEN / "llama-normed"),
        ("shared", save(tmp_path / "head", head, WRITTEN / "llama-normed")),
    ):
        bundle = tmp_path / f"{name}.bundle"
        manifest = export_bundle(target, bundle, precision=precision, draft=folder)
        made[name] = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        with SpeculativeDecoder.from_bundle(bundle, drafter="head", draft_tokens=3) as decoder:
            assert decoder.generate(PROMPT, max_tokens=20).stats.drafted
        assert manifest.draft is not None
        assert manifest.draft.graph.startswith("target/" if name == "shared" else "draft/")
    saved = table.numel() * (4 if precision == "fp32" else 1)
    assert made["its own"] - made["shared"] > 0.9 * saved


def test_a_head_without_an_embedding_takes_the_targets(
    target: Path, source: Source, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_head(tmp_path / "head")
    weights = load_file(folder / "model.safetensors")
    weights.pop("embed_tokens.weight")
    save_file(weights, folder / "model.safetensors")
    head = open_head(folder, source).head
    table = source.weights["model.embed_tokens.weight"].values()
    assert torch.equal(head.embed_tokens.weight, table.float())


def test_a_plan_of_an_export(target: Path, tmp_path: Path) -> None:
    what = {"precision": "w8a8", "draft": WRITTEN / "llama"}
    plan = plan_export(target, tmp_path / "b", **what)
    manifest = export_bundle(target, tmp_path / "b", **what)
    written = {file.path: file.bytes for file in manifest.all_files()}
    assert plan.files.keys() == written.keys() | {"specplug.json"}
    for path in ("draft/model.onnx.data", "target/model.onnx.data", "draft/vocabulary.i32"):
        assert plan.files[path] == pytest.approx(written[path], rel=0.03)


def test_verify(bundles: dict[str, Path], target: Path) -> None:
    """The target comes out anew with its hidden states, texts are equal with the head."""
    done = specplug("verify", bundles["fp32-ort"], "--source", target, "--sequences", "500")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "head" in done.stdout


def test_vocabularies_are_checked(bundles: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from specplug.bundle import describe_file, write_manifest

    bundle = tmp_path / "changed.bundle"
    shutil.copytree(bundles["fp32-ort"], bundle)
    manifest = Bundle.open(bundle).manifest
    assert manifest.draft is not None
    path = "draft/vocabulary.i32"
    for ids in ([*range(95), 260], [*range(95), 0], [*range(95)], [*range(95), -1]):
        np.array(ids, dtype="<i4").tofile(bundle / path)
        files = [describe_file(bundle, file.path) for file in manifest.draft.files]
        draft = manifest.draft.model_copy(update={"files": files})
        write_manifest(bundle, manifest.model_copy(update={"draft": draft}))
        with pytest.raises(BundleError, match="does not name 96 tokens of the target"):
            SpeculativeDecoder.from_bundle(bundle, drafter="head")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speculators_model_type": "dflash"}, "of kind 'dflash': only eagle3"),
        ({"transformer_layer_config__num_hidden_layers": 2}, "num_hidden_layers 2: only 1"),
        ({"transformer_layer_config__attention_bias": True}, "attention_bias True"),
        (
            {"speculators_config__verifier__architectures": ["Qwen3ForCausalLM"]},
            "with architecture Qwen3ForCausalLM, and the target tiny-target has LlamaForCausalLM",
        ),
        ({"transformer_layer_config__vocab_size": 300}, "with vocabulary 300, and the .* has 260"),
        ({"transformer_layer_config__hidden_size": 96}, "with hidden size 96, and the .* has 64"),
        (
            {"speculators_config__verifier__name_or_path": "somebody/other"},
            "was made for somebody/other, and the target is tiny-target",
        ),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2, 3]}, r"layers \[1, 2, 3\] read, .* has 3"),
        ({"eagle_aux_hidden_state_layer_ids": [1, 2]}, r"fc.weight is \(64, 192\), .*\(64, 128\)"),
        ({"draft_vocab_size": 97}, r"lm_head.weight is \(96, 64\), and should be \(97, 64\)"),
        ({"speculators_config": None}, "cannot be read"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], message: str, target: Path, tmp_path: Path
) -> None:
    folder = copy_head(tmp_path / "head", **change)
    with pytest.raises(ExportError, match=message):
        export_bundle(target, tmp_path / "b", precision="fp32", draft=folder)
    assert not (tmp_path / "b").exists()


def test_names_of_targets(source: Source, tmp_path: Path) -> None:
    """A head's verifier may be named by owner or folder; null is any."""
    for name in (None, "tiny-target", "/somewhere/else/Tiny-Target/", "x/tiny-target@main"):
        key = "speculators_config__verifier__name_or_path"
        open_head(copy_head(tmp_path / str(name).replace("/", "-"), **{key: name}), source)


def test_what_cannot_run_it_says_so(bundles: dict[str, Path], tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no head: export it with --draft"):
        SpeculativeDecoder.from_bundle(tiny_bundle, drafter="head")
    for engine in ("pytorch", "tensorrt"):
        with pytest.raises(EngineError, match=f"the {engine} engine runs models"):
            SpeculativeDecoder.from_bundle(bundles["fp32-ort"], drafter="head", draft_engine=engine)
    bundle = Bundle.open(bundles["fp32-ort"])
    blind = load(
        Bundle.open(tiny_bundle).path, Bundle.open(tiny_bundle).manifest.target, EngineOptions()
    )
    from specplug.opening import open_draft

    with pytest.raises(EngineError, match="gives none of the hidden states"):
        open_draft(bundle, EngineOptions(beside=blind))
    blind.close()
