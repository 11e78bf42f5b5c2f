"""What a folder with an exported graph holds: its configuration and the graph, read and checked.

The tables name all that is read; what is in neither is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import onnx_ir as ir

from specplug.export.folders import check_content
from specplug.export.passes.editing import attention_nodes
from specplug.export.tokenizer_texts import first_line, read_json
from specplug.types import ExportError

GENAI = "genai_config.json"
OPTIMUM = "config.json"
KINDS = ("key", "value")

GENAI_KEYS = {
    "model.type": "the architecture's name",
    "model.context_length": "the longest text",
    "model.vocab_size": "compared with the graph's logits",
    "model.eos_token_id": "an id or a list: end tokens",
    "model.decoder.filename": "the graph",
    "model.decoder.head_size": "of the cache",
    "model.decoder.num_hidden_layers": "compared with the graph's cache",
    "model.decoder.num_key_value_heads": "compared with the graph's cache",
    "model.decoder.sliding_window": "refused unless the graph's attention says the same",
    "model.decoder.inputs.input_ids": "the name of an input",
    "model.decoder.inputs.attention_mask": "the name of an input",
    "model.decoder.inputs.position_ids": "the name of an input",
    "model.decoder.inputs.past_key_names": "the names of inputs, %d for the layer",
    "model.decoder.inputs.past_value_names": "the names of inputs, %d for the layer",
    "model.decoder.outputs.logits": "the name of an output",
    "model.decoder.outputs.present_key_names": "the names of outputs, %d for the layer",
    "model.decoder.outputs.present_value_names": "the names of outputs, %d for the layer",
}
"""Keys of ``genai_config.json`` that are read."""

GENAI_HARMLESS = {
    "search": "defaults of its generation; those of specplug are used",
    "model.bos_token_id": "the tokenizer says so",
    "model.pad_token_id": "nothing is padded",
    "model.bot_token_id": "ends no answer",
    "model.eot_token_id": "ends no answer: the end of a tool call's text",
    "model.bor_token_id": "ends no answer",
    "model.eor_token_id": "ends no answer: the end of reasoning",
    "model.prompt_templates": "the tokenizer's chat template is used",
    "model.decoder.session_options": "of its own sessions",
    "model.decoder.run_options": "of its own sessions",
    "model.decoder.hidden_size": "the graph says so",
    "model.decoder.num_attention_heads": "the graph says so",
}
"""Keys of ``genai_config.json`` that change nothing here."""

OPTIMUM_KEYS = {
    "model_type": "the architecture's name",
    "max_position_embeddings": "the longest text",
    "n_positions": "the longest text, of GPT-2",
    "vocab_size": "compared with the graph's logits",
    "eos_token_id": "an id or a list: end tokens; those of generation_config.json, too",
}
"""Keys of ``config.json`` that are read; the graph says the rest."""

INPUTS = ("input_ids", "attention_mask", "position_ids")
"""Of a graph, beside its cache: i64."""

_DYNAMIC = ("DynamicQuantizeLinear", "DynamicQuantizeMatMul")

FLOATS = {ir.DataType.FLOAT: "fp32", ir.DataType.FLOAT16: "fp16"}
"""Types that a graph may compute in."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a folder's configuration says of its graph, whichever tool wrote it."""

    graph: str
    architecture: str
    max_positions: int
    end_tokens: dict[str, Any]
    """What it says of them, by file, beside the files that every folder may have."""
    sizes: dict[str, Any]
    """Sizes that the graph must have, too; the head's, which it may leave open."""
    window: dict[str, Any]
    """What onnxruntime-genai does to the cache between calls; nothing of it is done here."""
    names: dict[str, str]
    """By our name the graph's, of inputs and outputs beside the cache."""
    cache_names: tuple[tuple[str, str], ...]
    """Names of layer N's past and present, with %d for N: keys, then values."""
    config: str
    """The file that says so."""


def read_settings(folder: Path) -> Settings:
    """Read ``genai_config.json``, or Optimum's ``config.json``.

    Raises:
        ExportError: neither is there, it lacks something, or says what is not done here.
    """
    for name, read in ((GENAI, _genai_settings), (OPTIMUM, _optimum_settings)):
        if not (folder / name).is_file():
            continue
        config = read_json(folder / name)
        try:
            return read(config)
        except ExportError as error:
            raise ExportError(f"{folder / name}: {error}") from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no {error}" if isinstance(error, KeyError) else first_line(error)
            raise ExportError(f"{folder / name} cannot be read: {what}") from error
    raise ExportError(
        f"{folder} has neither a {GENAI} nor a {OPTIMUM}: give the folder that Optimum or "
        "onnxruntime-genai's builder wrote"
    )


def _genai_settings(config: Mapping[str, Any]) -> Settings:
    _refuse_unknown(config)
    model = config["model"]
    decoder = model["decoder"]
    inputs, outputs = decoder["inputs"], decoder["outputs"]
    _check_names(decoder)
    return Settings(
        graph=decoder["filename"],
        architecture=str(model["type"]),
        max_positions=int(model["context_length"]),
        end_tokens={GENAI: model.get("eos_token_id")},
        sizes={
            "vocab_size": model.get("vocab_size"),
            "head_size": int(decoder["head_size"]),
            "layers": decoder.get("num_hidden_layers"),
            "heads": decoder.get("num_key_value_heads"),
        },
        window=dict(decoder.get("sliding_window") or {}),
        names={name: inputs.get(name, name) for name in INPUTS}
        | {"logits": outputs.get("logits", "logits")},
        cache_names=tuple(
            (inputs[f"past_{kind}_names"], outputs[f"present_{kind}_names"]) for kind in KINDS
        ),
        config=GENAI,
    )


def _check_names(decoder: Mapping[str, Any]) -> None:
    """Refuse a graph outside of the folder, and names of the cache that name no layer."""
    graph = decoder["filename"]
    if not isinstance(graph, str) or PurePath(graph.replace("\\", "/")).name != graph:
        raise ExportError(f"model.decoder.filename is {graph!r}: only files of its folder are read")
    for part in ("inputs", "outputs"):
        for key, name in decoder[part].items():
            layered = key.endswith("_names")
            if not isinstance(name, str) or (layered and name.replace("%d", "").count("%")):
                raise ExportError(f"model.decoder.{part}.{key} is {name!r}, and should be a name")
            if layered and name.count("%d") != 1:
                raise ExportError(
                    f"model.decoder.{part}.{key} is {name!r}, and should have one %d for the layer"
                )


def _refuse_unknown(config: Mapping[str, Any]) -> None:
    """Refuse keys of no table: further graphs, pipelines, other caches, states."""
    known = {*GENAI_KEYS, *GENAI_HARMLESS}
    parents = {name.rsplit(".", 1)[0] for name in GENAI_KEYS}

    def walk(part: Mapping[str, Any], place: str) -> None:
        for key, value in part.items():
            name = f"{place}{key}"
            if name in parents and isinstance(value, Mapping):
                walk(value, f"{name}.")
            elif name not in known and value not in (None, {}, []):
                raise ExportError(
                    f"{name} is not read: only a single decoder graph with keys and values for its "
                    "cache is"
                )

    walk(config, "")


def _optimum_settings(config: Mapping[str, Any]) -> Settings:
    config = {key: value for key, value in config.items() if key in OPTIMUM_KEYS}
    positions = config.get("max_position_embeddings") or config.get("n_positions")
    if not positions:
        raise ExportError(
            "neither max_position_embeddings nor n_positions says how long texts may be"
        )
    return Settings(
        graph="model.onnx",
        architecture=str(config["model_type"]),
        max_positions=int(positions),
        end_tokens={},
        sizes={"vocab_size": config.get("vocab_size")},
        window={},
        names={name: name for name in (*INPUTS, "logits")},
        cache_names=tuple((f"past_key_values.%d.{kind}", f"present.%d.{kind}") for kind in KINDS),
        config=OPTIMUM,
    )


def read_graph(folder: Path, settings: Settings) -> Any:
    """The graph, its inputs and its cache under our names.

    Raises:
        ExportError: not there, not whole, or not a decoder with a cache in fp32 or fp16.
    """
    path = folder / settings.graph
    if not path.is_file():
        others = sorted(file.name for file in folder.glob("*.onnx"))
        raise ExportError(
            f"{path} is missing: export with a cache (task text-generation-with-past) as one graph"
            + (f", have {', '.join(others)}" if others else "")
        )
    check_content(path)
    try:
        model = ir.load(path)
    except Exception as error:  # a damaged file can make the reader raise anything
        raise ExportError(f"{path} cannot be read as ONNX: {first_line(error)}") from error
    for tensor in external_tensors(model):
        _check_external(path, tensor)
    _rename(model.graph, settings, path.name)
    _check_types(model.graph, path.name)
    _check_sizes(model.graph, settings, path.name)
    _check_attention(model.graph, settings, path.name)
    return model


def external_tensors(model: Any) -> list[Any]:
    """The weights that a graph keeps in other files."""
    found = (value.const_value for value in model.graph.initializers.values())
    return [tensor for tensor in found if isinstance(tensor, ir.ExternalTensor)]


def _check_external(path: Path, tensor: Any) -> None:
    data = Path(tensor.path)
    if not data.resolve().is_relative_to(path.parent.resolve()):
        raise ExportError(f"{path.name} keeps weights in {tensor.location}, outside of its folder")
    if not data.is_file():
        raise ExportError(f"{path.name} keeps weights in {tensor.location}, which is missing")
    check_content(data)
    needed = (tensor.offset or 0) + (tensor.length or 0)
    if data.stat().st_size < needed:
        raise ExportError(
            f"{tensor.location} has {data.stat().st_size} bytes, and {path.name} needs {needed} of "
            "it: download or build it again"
        )


def _rename(graph: Any, settings: Settings, name: str) -> None:
    values = {value.name: value for value in [*graph.inputs, *graph.outputs]}
    layers = 0
    while settings.cache_names[0][0] % layers in values:
        for (past, present), kind in zip(settings.cache_names, KINDS, strict=True):
            if past % layers not in values or present % layers not in values:
                raise ExportError(f"{name} has no {past % layers} or no {present % layers}")
            cache = values[past % layers]
            if "head_size" in settings.sizes and cache.shape is not None:
                cache.shape = ir.Shape([*cache.shape[:3], settings.sizes["head_size"]])
            cache.name = f"past_key_values.{layers}.{kind}"
            values[present % layers].name = f"present.{layers}.{kind}"
        layers += 1
    for ours, theirs in settings.names.items():
        if theirs in values:
            values[theirs].name = ours
    found = {value.name for value in [*graph.inputs, *graph.outputs]}
    if not layers or not {"input_ids", "logits"} <= found:
        raise ExportError(
            f"{name} has inputs {', '.join(list(values)[:4])}, …: need input_ids, logits and a "
            f"cache named {settings.cache_names[0][0]}, as {settings.config} has it"
        )
    cache_inputs = {f"past_key_values.{layer}.{kind}" for layer in range(layers) for kind in KINDS}
    unknown = {value.name for value in graph.inputs} - {*INPUTS, *cache_inputs, *graph.initializers}
    if unknown:
        raise ExportError(
            f"{name} has an input {min(unknown)!r}, and only {', '.join(INPUTS)} and a cache of "
            "keys and values are known here"
        )


def _check_types(graph: Any, name: str) -> None:
    values = {value.name: value for value in [*graph.inputs, *graph.outputs]}
    for what in INPUTS:
        if what in values and values[what].dtype != ir.DataType.INT64:
            raise ExportError(f"{name}: {what} is {values[what].dtype}, and int64 is needed")
    caches = {value.dtype for key, value in values.items() if key.startswith(("past_", "present."))}
    floats = {*caches, values["logits"].dtype}
    weights = (value.const_value for value in graph.initializers.values())
    floats |= {tensor.dtype for tensor in weights if tensor is not None and tensor.size > 1}
    if ir.DataType.BFLOAT16 in floats:
        raise ExportError(
            f"{name} computes in bfloat16, which ONNX Runtime does not run on a CPU: build it in "
            "fp16 or fp32"
        )
    if len(caches) != 1 or not {*caches, values["logits"].dtype} <= {*FLOATS}:
        raise ExportError(
            f"{name} has a cache of {', '.join(sorted(map(str, caches)))} and logits of "
            f"{values['logits'].dtype}: FLOAT and FLOAT16 are read"
        )


def _check_sizes(graph: Any, settings: Settings, name: str) -> None:
    keys = [value for value in graph.inputs if value.name.endswith(".key")]
    logits = next(value for value in graph.outputs if value.name == "logits")
    found = {
        "layers": len(keys),
        "heads": keys[0].shape[1] if keys[0].shape is not None else None,
        "vocab_size": logits.shape[2] if logits.shape is not None else None,
    }
    for what, size in found.items():
        said = settings.sizes.get(what)
        if isinstance(said, int) and isinstance(size, int) and said != size:
            raise ExportError(
                f"{settings.config} says {said} for {what}, and {name} has {size}: they are not of "
                "one model"
            )
    if not isinstance(found["vocab_size"], int):
        raise ExportError("the graph does not say how many logits it gives: fix logits' last size")
    if not isinstance(found["heads"], int) or not isinstance(keys[0].shape[3], int):
        raise ExportError(f"{name} does not say the sizes of its cache: fix {keys[0].name}'s")


def _check_attention(graph: Any, settings: Settings, name: str) -> None:
    """Refuse what makes a token's scores depend on more than the tokens before it."""
    for node in graph:
        if node.op_type in _DYNAMIC:
            raise ExportError(
                f"{name} rounds activations of a whole call together ({node.op_type}): scores of a "
                "token depend on the others of its call, and speculation would change the text; "
                "quantize weights alone, or give the checkpoint to `specplug export`"
            )
    if attention_nodes(graph) and any(node.op_type == "If" for node in graph):
        raise ExportError(
            f"{name} chooses its rotary tables by the length of the text (If, of LongRoPE): tokens "
            "that are cached before the text grows long would have others than the later ones; "
            "give the checkpoint to `specplug export`"
        )
    said = settings.window.get("window_size")
    if not settings.window or (isinstance(said, int) and said >= settings.max_positions):
        return
    has = [node.attributes.get("local_window_size") for node in attention_nodes(graph)]
    widths = [-1 if width is None else width.value for width in has]
    layers = settings.window.get("layers") or range(len(widths))
    slides = any(settings.window.get(f"slide_{what}") for what in ("inputs", "key_value_cache"))
    if slides or not widths or any(widths[layer] != said for layer in layers):
        raise ExportError(
            f"{settings.config} has a sliding window of {said} that {name} itself does not have: "
            "onnxruntime-genai drops cache entries for it, which is not done here; give the "
            "checkpoint to `specplug export`"
        )
