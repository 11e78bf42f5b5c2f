"""Learned heads: modules and graphs are the library's; what targets give them; their bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers

from specplug import (
    BundleError,
    EngineError,
    EngineOptions,
    ExportError,
    SpeculativeDecoder,
)
from specplug.bundle import Bundle
from specplug.distilling.heads import save_head
from specplug.engines import load
from specplug.engines.contract import assert_close
from specplug.export import export_bundle, graphs, measuring, plan_export
from specplug.export.head import Head
from specplug.export.head_graph import build_head
from specplug.export.source import Source, open_source
from specplug.export.speculators import open_head
from specplug.types import HIDDEN_STATES, Engine, Step
from tests_support.command import specplug
from tests_support.families import NAMED, OTHERS
from tests_support.heads import (
    NAMES,
    WRITTEN,
    copy_head,
    features_of,
)
from tests_support.tiny import write_checkpoint

PROMPT = list(b"the quick brown fox jumps over the lazy dog. ")
DIALECTS = ("ort", "standard")


def reference(name: str) -> dict[str, Any]:
    return dict(np.load(WRITTEN / name / "reference.npz"))


def graph_of(head: Head, dialect: str, folder: Path, precision: str = "fp32") -> Engine:
    from specplug.export.head_component import open_head_graph
    from specplug.export.rounding import apply_precision

    graph = build_head(head, dialect)
    apply_precision(graph, precision, dialect=dialect, same_at_any_width=False)
    graphs.save(graph, folder)
    return open_head_graph(folder, graph, head.shape, dialect)


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
def test_module_gives_the_librarys_logits(name: str, head_source: Source) -> None:
    """Of a context, and of steps on the head's own hidden states from every place of it."""
    head, saved = open_head(WRITTEN / name, head_source).head, reference(name)
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
    name: str, dialect: str, head_source: Source, tmp_path: Path
) -> None:
    head, saved = open_head(WRITTEN / name, head_source).head, reference(name)
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
def test_both_kinds_of_states_in_one_call(
    dialect: str, head_source: Source, tmp_path: Path
) -> None:
    """Pieces, and context with drafts after it, are what they are one by one."""
    head, saved = open_head(WRITTEN / "llama", head_source).head, reference("llama")
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
    precision: str, dialect: str, most: float, head_source: Source, tmp_path: Path
) -> None:
    head, saved = open_head(WRITTEN / "llama", head_source).head, reference("llama")
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


def test_a_target_without_a_head_pays_nothing(head_source: Source) -> None:
    plain, given = graphs.build_fp32(head_source), graphs.build_fp32(head_source, hidden=(0, 2))
    assert [value.name for value in plain.graph.outputs] == [
        value.name for value in given.graph.outputs if value.name != HIDDEN_STATES
    ]
    assert len(list(given.graph)) == len(list(plain.graph)) + 1


# --- the bundle -------------------------------------------------------------------------------


def test_what_is_written(head_bundles: dict[str, Path], head_target: Path) -> None:
    manifest = Bundle.open(head_bundles["w8a8-ort"]).manifest
    draft = manifest.draft
    assert draft is not None
    assert draft.head is not None
    assert manifest.target.hidden is not None
    assert manifest.target.hidden.layers == [0, 1, 2]
    assert (draft.architecture, draft.precision, draft.vocab_size) == ("eagle3", "w8a8", 96)
    assert draft.cache.layers == 1
    assert max(draft.parity.model_dump().values()) < 1e-3
    assert draft.provenance.sha256.keys() == {"config.json", "model.safetensors"}
    shown = specplug("inspect", head_bundles["w8a8-ort"])
    assert "gives what its layers 0, 1, 2 read" in shown.stdout
    assert "a head that guesses 96 of 260 tokens" in shown.stdout


@pytest.mark.parametrize(("bundle", "kept"), [("w8a8-ort", True), ("fp16-standard", False)])
def test_beside_8_bits_the_targets_hidden_states_are_read_in_fp32(
    bundle: str, kept: bool, head_bundles: dict[str, Path]
) -> None:
    manifest = Bundle.open(head_bundles[bundle]).manifest
    assert manifest.draft is not None
    graph = onnx.load(head_bundles[bundle] / manifest.draft.graph, load_external_data=False).graph
    types = {each.name: each.data_type for each in graph.initializer}
    floats = {name for name, kind in types.items() if kind == onnx.TensorProto.FLOAT}
    read = [node.input[1] for node in graph.node if node.op_type == "MatMul"]
    assert [name for name in read if name in floats] == ["fc.weight_t"] * kept


@pytest.mark.parametrize("precision", ["fp32", "w8a8", "int4"])
def test_an_embedding_that_is_the_targets_is_stored_once(
    precision: Any, head_target: Path, head_source: Source, tmp_path: Path
) -> None:
    head = open_head(WRITTEN / "llama-normed", head_source).head
    table = head_source.weights["model.embed_tokens.weight"].values()
    head.embed_tokens.weight.data = table.clone()
    made = {}
    for name, folder in (
        ("its own", WRITTEN / "llama-normed"),
        ("shared", save_head(tmp_path / "head", head, head_source, None)),
    ):
        bundle = tmp_path / f"{name}.bundle"
        plan = plan_export(head_target, bundle, precision=precision, draft=folder)
        manifest = export_bundle(head_target, bundle, precision=precision, draft=folder)
        written = {file.path: file.bytes for file in manifest.all_files()}
        assert plan.files.keys() == written.keys() | {"specplug.json"}
        for path, size in written.items():
            if not path.endswith(".onnx"):  # in which a draft's smallest tensors are
                assert plan.files[path] == pytest.approx(size, rel=0.03, abs=5_000), path
        made[name] = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        with SpeculativeDecoder.from_bundle(bundle, drafter="head", draft_tokens=3) as decoder:
            assert decoder.generate(PROMPT, max_tokens=20).stats.drafted
        assert manifest.draft is not None
        assert manifest.draft.graph.startswith("target/" if name == "shared" else "draft/")
    saved = table.numel() * (4 if precision == "fp32" else 1)
    assert made["its own"] - made["shared"] > 0.9 * saved


@pytest.mark.parametrize(
    ("precision", "dialect", "expected"),
    [
        ("fp32", "ort", "w8a8"),
        ("fp16", "ort", "w8a8"),
        ("int4", "ort", "int4"),
        ("fp32", "standard", "fp32"),
    ],
)
def test_a_head_stored_in_8_bits_stays_in_them(
    precision: Any,
    dialect: Any,
    expected: str,
    head_target: Path,
    head_source: Source,
    tmp_path: Path,
) -> None:
    head = open_head(WRITTEN / "llama-normed", head_source).head
    table = head_source.weights["model.embed_tokens.weight"].values()
    head.embed_tokens.weight.data = table.clone()
    folder = save_head(tmp_path / "head", head, head_source, None, eight_bits=True)
    bundle, how = tmp_path / "bundle", {"precision": precision, "dialect": dialect}
    plan = plan_export(head_target, bundle, draft=folder, **how)
    manifest = export_bundle(head_target, bundle, draft=folder, **how)
    assert manifest.draft is not None
    assert manifest.draft.precision == expected
    assert manifest.draft.graph.startswith("draft/" if precision == "fp16" else "target/")
    for file in manifest.all_files():
        if not file.path.endswith(".onnx"):
            expected_size = pytest.approx(file.bytes, rel=0.03, abs=5_000)
            assert plan.files[file.path] == expected_size, file.path
    texts = []
    for drafter, drafted in (("none", "auto"), ("head", 3)):
        with SpeculativeDecoder.from_bundle(
            bundle, drafter=drafter, draft_tokens=drafted
        ) as decoder:
            made = decoder.generate(PROMPT, max_tokens=20)
        texts.append(made.token_ids)
    assert made.stats.drafted
    assert texts[0] == texts[1]


def test_a_head_without_an_embedding_takes_the_targets(
    head_target: Path, head_source: Source, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_head(tmp_path / "head")
    weights = load_file(folder / "model.safetensors")
    weights.pop("embed_tokens.weight")
    save_file(weights, folder / "model.safetensors")
    head = open_head(folder, head_source).head
    table = head_source.weights["model.embed_tokens.weight"].values()
    assert torch.equal(head.embed_tokens.weight, table.float())


def test_a_plan_of_an_export(head_target: Path, tmp_path: Path) -> None:
    what = {"precision": "w8a8", "draft": WRITTEN / "llama"}
    plan = plan_export(head_target, tmp_path / "b", **what)
    manifest = export_bundle(head_target, tmp_path / "b", **what)
    written = {file.path: file.bytes for file in manifest.all_files()}
    assert plan.files.keys() == written.keys() | {"specplug.json"}
    for path in ("draft/model.onnx.data", "target/model.onnx.data", "draft/vocabulary.i32"):
        assert plan.files[path] == pytest.approx(written[path], rel=0.03)


def test_verify(head_bundles: dict[str, Path], head_target: Path) -> None:
    """The target comes out anew with its hidden states, texts are equal with the head."""
    done = specplug(
        "verify", head_bundles["fp32-ort"], "--source", head_target, "--sequences", "500"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "head" in done.stdout


def test_vocabularies_are_checked(head_bundles: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from specplug.bundle import write_manifest
    from specplug.bundle_files import describe_file

    bundle = tmp_path / "changed.bundle"
    shutil.copytree(head_bundles["fp32-ort"], bundle)
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
        ({"speculators_model_type": "peagle"}, "of kind 'peagle': eagle3 and dflash are"),
        ({"speculators_model_type": "mtp"}, "of kind 'mtp': eagle3 .* cannot be rolled back"),
        (
            {"speculators_model_type": None, "architectures": ["LlamaForCausalLMEagle3"]},
            "of kind 'LlamaForCausalLMEagle3': .* library .which converts heads in others",
        ),
        (
            {"speculators_model_type": None, "architectures": ["DFlashDraftModel"]},
            "of kind 'DFlashDraftModel': .* library .which converts heads in others",
        ),
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
        ({"norm_before_residual": "false"}, "norm_before_residual 'false': only True"),
        ({"transformer_layer_config__max_position_embeddings": 10**9}, "tokens, and 16777216 are"),
        ({"transformer_layer_config__num_attention_heads": 0}, "cannot be read: ZeroDivision"),
    ],
)
def test_what_does_not_fit_is_refused(
    change: dict[str, Any], message: str, head_target: Path, tmp_path: Path
) -> None:
    folder = copy_head(tmp_path / "head", **change)
    with pytest.raises(ExportError, match=message):
        export_bundle(head_target, tmp_path / "b", precision="fp32", draft=folder)
    assert not (tmp_path / "b").exists()


def test_keys_that_the_library_writes_into_every_head(head_source: Source, tmp_path: Path) -> None:
    """As heads are published: what transformers' own configurations hold, too."""
    written = transformers.PreTrainedConfig().to_dict() | {
        "has_no_defaults_at_init": False,
        "base_model_ep_plan": None,
        "dtype": "float32",
    }
    kept = ("architectures", "model_type")
    changed = {key: value for key, value in written.items() if key not in kept}
    name = "speculators_config__verifier__name_or_path"
    open_head(copy_head(tmp_path / "head", **changed, **{name: None}), head_source)


def test_names_of_targets(head_source: Source, tmp_path: Path) -> None:
    """A head's verifier may be named by owner or folder; null is any."""
    for name in (None, "tiny-target", "/somewhere/else/Tiny-Target/", "x/tiny-target@main"):
        key = "speculators_config__verifier__name_or_path"
        open_head(copy_head(tmp_path / str(name).replace("/", "-"), **{key: name}), head_source)


def test_what_cannot_run_it_says_so(head_bundles: dict[str, Path], tiny_bundle: Path) -> None:
    with pytest.raises(BundleError, match="holds no head: export it with --draft"):
        SpeculativeDecoder.from_bundle(tiny_bundle, drafter="head")
    with pytest.raises(EngineError, match="the tensorrt engine runs models"):
        SpeculativeDecoder.from_bundle(
            head_bundles["fp32-ort"], drafter="head", draft_engine="tensorrt"
        )
    bundle = Bundle.open(head_bundles["fp32-ort"])
    blind = load(
        Bundle.open(tiny_bundle).path, Bundle.open(tiny_bundle).manifest.target, EngineOptions()
    )
    from specplug.opening import open_draft

    with pytest.raises(EngineError, match="gives none of the hidden states"):
        open_draft(bundle, EngineOptions(beside=blind))
    blind.close()
