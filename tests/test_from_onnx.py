"""Graphs that Optimum and onnxruntime-genai's builder made (tests/data/make_onnx.sh)."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import transformers
from onnxruntime.transformers.float16 import convert_float_to_float16

from specplug import Bundle, ExportError, SpeculativeDecoder
from specplug.export.from_onnx import export_onnx, onnx_tokenizer
from specplug.export.onnx_folder import read_settings
from tests_support.plain_session import plain_session
from tests_support.tiny import greedy_tokens, write_checkpoint

DATA = Path(__file__).parent / "data"
PROMPT = list(b"the quick brown fox jumps over the lazy dog")


def decode(bundle: Path, drafter: str, k: int) -> tuple[int, ...]:
    with SpeculativeDecoder.from_bundle(bundle, drafter=drafter, draft_tokens=k) as decoder:
        decoder.stop_token_ids = frozenset()
        return decoder.generate(PROMPT, max_tokens=60).token_ids


@pytest.mark.parametrize("name", ["optimum", "genai-fp32"])
def test_text_is_transformers(name: str, foreign_bundles: dict[str, Path], tmp_path: Path) -> None:
    """Of the very checkpoint that the tools were given: random, from a seed."""
    source = write_checkpoint(
        tmp_path / "source",
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    assert list(decode(foreign_bundles[name], "none", 0)) == greedy_tokens(source, PROMPT, 60)


def run_as_it_is(folder: Path, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of a graph in plain ONNX Runtime, one token a call."""
    session = plain_session(folder / "model.onnx")
    inputs = {value.name: value for value in session.get_inputs()}
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    cache = {
        name: np.zeros((1, value.shape[1], 0, 16), dtype=types[value.type])
        for name, value in inputs.items()
        if name.startswith("past")
    }
    tokens = list(prompt)
    done, new = 0, list(prompt)
    while len(tokens) < len(prompt) + count:
        feeds = {
            "input_ids": np.array([new]),
            "attention_mask": np.ones((1, done + len(new)), dtype=np.int64),
            "position_ids": np.arange(done, done + len(new))[None],
        }
        feeds = {name: value for name, value in feeds.items() if name in inputs} | cache
        results = dict(
            zip(
                [value.name for value in session.get_outputs()],
                session.run(None, feeds),
                strict=True,
            )
        )
        cache = {name: results[name.replace("past_key_values", "present")] for name in cache}
        done += len(new)
        new = [int(results["logits"][0, -1].argmax())]
        tokens += new
    return tokens[len(prompt) :]


GENAI = [6, 71, 257, 151, 191, 140, 206, 182, 140, 206, 170]
"""What onnxruntime-genai 0.18 itself generates after PROMPT, from the graph in fp16."""


def test_fp16_is_what_its_maker_runs(foreign_bundles: dict[str, Path]) -> None:
    bundle = foreign_bundles["genai-fp16"]
    expected = run_as_it_is(DATA / "genai-fp16", PROMPT, 60)
    assert expected[: len(GENAI)] == GENAI
    for drafter, k in (("none", 0), ("ngram", 4)):
        assert list(decode(bundle, drafter, k)) == expected
    target = Bundle.open(bundle).manifest.target
    assert (target.precision, target.dialect, target.cache.dtype) == ("fp16", "ort", "float16")
    outputs = onnx.load(bundle / target.graph, load_external_data=False).graph.output
    types = {output.name: output.type.tensor_type.elem_type for output in outputs}
    assert types["logits"] == onnx.TensorProto.FLOAT


@pytest.mark.parametrize("keep", [False, True])
def test_fp16_of_an_appending_graph(keep: bool, tmp_path: Path) -> None:
    """As ONNX Runtime's own tool makes it, with inputs and outputs in fp16 or in fp32."""
    folder = Path(shutil.copytree(DATA / "optimum", tmp_path / "folder"))
    model = convert_float_to_float16(onnx.load(folder / "model.onnx"), keep_io_types=keep)
    onnx.save(model, folder / "model.onnx")
    manifest = export_onnx(folder, tmp_path / "out.bundle")
    assert manifest.target.precision == "fp16"
    assert manifest.target.cache.dtype == ("float32" if keep else "float16")
    assert list(decode(tmp_path / "out.bundle", "ngram", 4)) == run_as_it_is(folder, PROMPT, 60)


def test_parameters_are_the_checkpoints(foreign_bundles: dict[str, Path], tmp_path: Path) -> None:
    source = write_checkpoint(
        tmp_path / "source",
        hidden_size=32,
        intermediate_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    expected = model.num_parameters()
    found = {name: Bundle.open(path).manifest.target for name, path in foreign_bundles.items()}
    for name in ("genai-fp32", "genai-fp16", "genai-int4"):
        assert found[name].parameters == expected


@pytest.mark.parametrize("name", ["optimum", "genai-fp32", "genai-fp16", "genai-int4"])
@pytest.mark.parametrize("k", [1, 4, 8])
def test_speculative_text_is_plain_text(
    name: str, k: int, foreign_bundles: dict[str, Path]
) -> None:
    bundle = foreign_bundles[name]
    assert decode(bundle, "ngram", k) == decode(bundle, "none", 0)


def test_what_the_manifest_says(foreign_bundles: dict[str, Path]) -> None:
    found = {name: Bundle.open(path).manifest for name, path in foreign_bundles.items()}
    assert [found[name].target.dialect for name in found] == ["concat", "ort", "ort", "ort"]
    assert [found[name].target.precision for name in found] == ["fp32", "fp32", "fp16", "int4"]
    for manifest in found.values():
        assert manifest.target.max_length == 1199
        allowed = 2e-2 if manifest.target.precision == "fp16" else 1e-5
        assert max(manifest.target.parity.model_dump().values()) < allowed
        assert "model.onnx" in manifest.target.provenance.sha256
        assert ("model.onnx.data" in manifest.target.provenance.sha256) == (
            manifest.target.dialect == "ort"
        )
        assert manifest.tokenizer is not None
        assert manifest.tokenizer.stop_token_ids == [256]
        assert manifest.tokenizer.chat_template
    # One-row attention is padded where it matters, as in our own graphs.
    assert found["genai-int4"].target.min_width == 1


def test_other_names_of_the_cache(tmp_path: Path) -> None:
    """genai's configuration may name the cache otherwise; the graph then does, too."""
    folder = Path(shutil.copytree(DATA / "genai-fp32", tmp_path / "renamed"))
    config = json.loads((folder / "genai_config.json").read_text())
    config["model"]["decoder"]["inputs"]["past_key_names"] = "old_keys_%d"
    (folder / "genai_config.json").write_text(json.dumps(config))
    with pytest.raises(
        ExportError, match=r"a cache named old_keys_%d, as genai_config\.json has it"
    ):
        export_onnx(folder, tmp_path / "out.bundle")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    for layer in range(2):
        old, new = f"past_key_values.{layer}.key", f"old_keys_{layer}"
        next(value for value in model.graph.input if value.name == old).name = new
        for node in model.graph.node:
            node.input[:] = [new if name == old else name for name in node.input]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    export_onnx(folder, tmp_path / "out.bundle")
    assert decode(tmp_path / "out.bundle", "ngram", 4)


def genai(*path: str, value: object) -> Callable[[Path], None]:
    """Change ``genai_config.json`` at a path."""

    def spoil(folder: Path) -> None:
        config = json.loads((folder / "genai_config.json").read_text())
        at = config
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
        (folder / "genai_config.json").write_text(json.dumps(config))

    return spoil


def graph(change: Callable[[onnx.ModelProto], None]) -> Callable[[Path], None]:
    """Change ``model.onnx``."""

    def spoil(folder: Path) -> None:
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        change(model)
        (folder / "model.onnx").write_bytes(model.SerializeToString())

    return spoil


def to_bfloat16(model: onnx.ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output]:
        if "key" in value.name or "value" in value.name:
            value.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16


def to_int32(model: onnx.ModelProto) -> None:
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT32


def with_another_input(model: onnx.ModelProto) -> None:
    made = onnx.helper.make_tensor_value_info("use_cache_branch", onnx.TensorProto.BOOL, [1])
    model.graph.input.append(made)


def without_cache(model: onnx.ModelProto) -> None:
    """As with ``use_cache=false``."""
    del model.graph.input[2:]


def outside(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../model.onnx.data"


def with_choice(model: onnx.ModelProto) -> None:
    """As the builder writes Phi 3: rotary tables by the length of the text."""
    tables = {tensor.name: tensor for tensor in model.graph.initializer}
    names = ("cos_cache", "sin_cache")
    branches = []
    for branch in ("small", "large"):
        outputs = [
            onnx.helper.make_tensor_value_info(f"{name}_{branch}", 1, list(tables[name].dims))
            for name in names
        ]
        nodes = [
            onnx.helper.make_node("Identity", [f"{name}_table"], [f"{name}_{branch}"])
            for name in names
        ]
        branches.append(onnx.helper.make_graph(nodes, branch, [], outputs))
    for name in names:
        tables[name].name = f"{name}_table"
    nodes = [
        onnx.helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        onnx.helper.make_node("Constant", [], ["longest"], value_ints=[1, 64]),
        onnx.helper.make_node("Greater", ["mask_shape", "longest"], ["longer"]),
        onnx.helper.make_node("Constant", [], ["second"], value_int=1),
        onnx.helper.make_node("Gather", ["longer", "second"], ["is_long"]),
        onnx.helper.make_node(
            "If", ["is_long"], list(names), then_branch=branches[1], else_branch=branches[0]
        ),
    ]
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*nodes, *rest])


def with_mask_used(model: onnx.ModelProto) -> None:
    model.graph.node.append(onnx.helper.make_node("Shape", ["attention_mask"], ["mask_shape"]))
    made = onnx.helper.make_tensor_value_info("mask_shape", onnx.TensorProto.INT64, [2])
    model.graph.output.append(made)


def cut(folder: Path) -> None:
    data = (folder / "model.onnx.data").read_bytes()
    (folder / "model.onnx.data").write_bytes(data[: len(data) // 2])


def quantize(folder: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(folder / "model.onnx", folder / "model.onnx")


WINDOW = {"window_size": 16, "slide_key_value_cache": False, "slide_inputs": False, "layers": []}


def rename_badly(graph: Path) -> None:
    content = graph.read_bytes()
    graph.write_bytes(content.replace(b"/mlp/act_fn/", b"/mlp/act\xfffn/"))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("genai-fp16", graph(to_bfloat16), "computes in bfloat16, which ONNX Runtime does not"),
        ("optimum", graph(to_int32), "input_ids is INT32, and int64 is needed"),
        ("optimum", graph(with_another_input), "has an input 'use_cache_branch', and only"),
        ("optimum", graph(without_cache), "need input_ids, logits and a cache"),
        ("genai-fp32", graph(outside), "outside of its folder"),
        ("genai-fp32", graph(with_choice), r"chooses its rotary tables by the length"),
        ("genai-fp32", graph(with_mask_used), r"uses its attention_mask for more than"),
        ("genai-fp32", cut, r"model\.onnx\.data has \d+ bytes, and model\.onnx needs \d+"),
        ("optimum", quantize, "rounds activations of a whole call together"),
        ("genai-fp32", genai("model", "vision", value={"filename": "v.onnx"}), "model.vision is"),
        ("genai-fp32", genai("model", "encoder", value={"filename": "e"}), "model.encoder is not"),
        (
            "genai-fp32",
            genai("model", "decoder", "pipeline", value=[{"embeds": {}}]),
            "decoder.pipeline is not read",
        ),
        (
            "genai-fp32",
            genai("model", "decoder", "inputs", "block_table", value="b"),
            "inputs.block_table is not read",
        ),
        (
            "genai-fp32",
            genai("model", "decoder", "sliding_window", value=WINDOW),
            r"a sliding window of 16 that model\.onnx itself does not have",
        ),
        (
            "genai-fp32",
            genai("model", "decoder", "filename", value="../genai-int4/model.onnx"),
            "only files of its folder are read",
        ),
        (
            "genai-fp32",
            genai("model", "decoder", "inputs", "past_key_names", value="past.%d.%d"),
            "should have one %d for the layer",
        ),
        (
            "genai-fp32",
            genai("model", "decoder", "outputs", "present_value_names", value="present.%s"),
            "and should be a name",
        ),
        ("genai-fp32", genai("model", "decoder", "outputs", "logits", value=5), "is 5, and should"),
        ("genai-fp32", genai("model", "vocab_size", value=300), "says 300 for vocab_size, and mo"),
        (
            "genai-fp32",
            genai("model", "decoder", "num_hidden_layers", value=3),
            "says 3 for layers, and model.onnx has 2",
        ),
        ("genai-fp32", genai("model", "eos_token_id", value=[256, 999]), "token 999 ends an ans"),
    ],
)
def test_other_graphs_are_refused_by_name(
    name: str, spoil: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(DATA / name, tmp_path / "folder"))
    spoil(folder)
    with pytest.raises(ExportError, match=message) as caught:
        export_onnx(folder, tmp_path / "out.bundle")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out.bundle").exists()


def test_prompt_templates_of_the_builder_change_nothing(tmp_path: Path) -> None:
    """Those of ``--extra_options prompt_templates=1``; the tokenizer has its own template."""
    folder = Path(shutil.copytree(DATA / "genai-fp32", tmp_path / "folder"))
    genai("model", "prompt_templates", value={"user": "<|user|>{Content}<|end|>"})(folder)
    assert read_settings(folder) == read_settings(DATA / "genai-fp32")


def test_a_window_that_the_graph_has(tmp_path: Path) -> None:
    """Attention to the last 16 tokens, in the graph and in its configuration."""

    def windowed(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "local_window_size":
                    attribute.i = 16

    folder = Path(shutil.copytree(DATA / "genai-fp32", tmp_path / "folder"))
    genai("model", "decoder", "sliding_window", value=WINDOW | {"layers": [0, 1]})(folder)
    graph(windowed)(folder)
    export_onnx(folder, tmp_path / "out.bundle")
    expected = run_as_it_is(folder, PROMPT, 60)
    assert expected != run_as_it_is(DATA / "genai-fp32", PROMPT, 60)
    assert list(decode(tmp_path / "out.bundle", "ngram", 4)) == expected


def test_end_tokens_of_all_files(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / "genai-fp32", tmp_path / "folder"))
    genai("model", "eos_token_id", value=[257, 3])(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [4]}))
    tokenizer = onnx_tokenizer(folder)
    assert tokenizer is not None
    assert set(tokenizer.stop_token_ids) == {3, 4, 256, 257}


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("optimum", lambda f: (f / "config.json").unlink(), "neither a genai_config.json nor"),
        ("optimum", lambda f: (f / "config.json").write_text("{"), "is not JSON"),
        ("optimum", lambda f: (f / "config.json").write_text("{}"), "max_position|n_positions"),
        ("optimum", lambda f: (f / "model.onnx").unlink(), "is missing: export with a cache"),
        ("optimum", lambda f: (f / "model.onnx").write_bytes(b"\0junk"), "cannot be read as ONNX"),
        ("genai-fp32", lambda f: rename_badly(f / "model.onnx"), r"model\.onnx is damaged \("),
        ("genai-fp32", lambda f: (f / "model.onnx.data").unlink(), "in model.onnx.data, which is"),
    ],
)
def test_refusals(name: str, spoil, message: str, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(DATA / name, tmp_path / "folder"))
    spoil(folder)
    with pytest.raises(ExportError, match=message):
        export_onnx(folder, tmp_path / "out.bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
