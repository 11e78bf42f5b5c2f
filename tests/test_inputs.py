"""docs/INPUTS.md lists what the readers read: neither more nor less."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from specplug import SamplingParams, bundle, cli
from specplug.export import (
    compressed,
    configs,
    folders,
    gguf,
    gguf_file,
    gguf_keys,
    gguf_pretokenizers,
    gguf_rotation,
    gguf_specials,
    gguf_vocabulary,
    harmless,
    onnx_folder,
    quantized,
    speculators,
    tokenizer_files,
    tokenizer_folder,
)
from specplug.generation_options import CallOptions
from specplug.integrations.transformers import fields as configuration
from specplug.integrations.triton import asking
from specplug.integrations.triton.repository import INPUTS, SETTINGS
from specplug.serving import requests
from specplug.tuning import TunedCosts, Tuning
from tests_support.c_interface import fields
from tests_support.llama import vocabularies
from tests_support.llama_models import MODELS, write_model
from tests_support.native import ROOT

DOCUMENT = Path(__file__).parents[1] / "docs" / "INPUTS.md"
SAMPLING = {field.name for field in dataclasses.fields(SamplingParams)}
NATIVE = ROOT / "engines" / "native" / "src"


def section_text(section: str) -> str:
    """A section, without its heading."""
    return DOCUMENT.read_text(encoding="utf-8").split(f"\n## {section}\n")[1].split("\n## ")[0]


def listed(section: str, table: int = 0) -> set[str]:
    """The names in the first column of a section's table, without their backticks.

    Args:
        section: its heading.
        table: which of its tables, from 0.
    """
    text = section_text(section)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    rows = tables[table].splitlines()[2:]
    cells = [re.split(r"(?<!\\)\|", row)[1].replace("\\|", "|") for row in rows]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_document_has_sections() -> None:
    assert DOCUMENT.read_text(encoding="utf-8").count("\n## ") >= 10


# --- C and C++ --------------------------------------------------------------------------------


@pytest.mark.parametrize(("table", "struct"), [(0, "model"), (1, "decoder"), (2, "generation")])
def test_c_options_are_those_of_the_header(table: int, struct: str) -> None:
    assert listed("C and C++", table) == fields(f"specplug_{struct}_options").keys()


def test_cpp_reads_the_listed_keys_of_tokenizers() -> None:
    text = (NATIVE / "tokenizer_keys.hpp").read_text(encoding="utf-8")
    known = set(re.findall(r'^ {4}"(.+)",$', text, flags=re.MULTILINE))
    assert listed("C and C++", 3) == known
    used = re.findall(
        r'\["(\w+)"\]|(?:flag|need<.*>)\((?:\w+, )?"(\w+)"',
        "".join((NATIVE / name).read_text() for name in ("tokenizer.cpp", "pretokenizer.cpp")),
    )
    inner = {key.rpartition(".")[2] for key in known}
    inner |= {"Regex", "SpecialToken", "id", "ids"}  # of values whose keys are data
    assert {one or other for one, other in used} <= inner


def test_cpp_reads_every_field_of_a_manifest() -> None:
    """Those that Python reads and writes, all of them by name."""
    parts = [one for one in vars(bundle).values() if isinstance(one, type)]
    models = [one for one in parts if issubclass(one, BaseModel)] + [TunedCosts, Tuning]
    written = {name for model in models for name in model.model_fields}
    plans = {*bundle.TensorRTPlan.model_fields} - {"path"}  # of another engine: not looked into
    assert listed("C and C++", 4) == written - plans
    text = (NATIVE / "manifest.cpp").read_text(encoding="utf-8")
    assert written - plans <= {*re.findall(r'"(\w+)"', text)}


def test_hugging_face_folders() -> None:
    tables = [
        folders.FILES,
        folders.REFUSED_FILES,
        configs.KEYS,
        quantized.METHODS,
        quantized.REFUSED_METHODS,
        harmless.HARMLESS,
        harmless.NOTED,
    ]
    for number, table in enumerate(tables):
        assert listed("Hugging Face folders", number) == set(table), number
    text = " ".join(section_text("Hugging Face folders").split())
    for name, method in quantized.METHODS.items():
        assert f"| `{name}` | {', '.join(method.read)}; {', '.join(method.unused)} |" in text
    assert f"compressed-tensors' formats are {', '.join(compressed.FORMATS)}." in text
    read = {*tokenizer_folder.VOCABULARIES, *tokenizer_folder.COMPANIONS}
    assert read - {*folders.FILES, *folders.TOKENIZER_FILES} == {"additional_chat_templates"}


def test_exported_graphs() -> None:
    tables = [
        onnx_folder.GENAI_KEYS,
        onnx_folder.GENAI_HARMLESS,
        onnx_folder.OPTIMUM_KEYS,
        onnx_folder.INPUTS,
    ]
    for number, table in enumerate(tables):
        assert listed("Exported graphs", number) == set(table), number


def test_tokenizers() -> None:
    tables = [
        tokenizer_folder.VOCABULARIES,
        tokenizer_folder.COMPANIONS,
        tokenizer_folder.UNREADABLE,
        tokenizer_folder.SETTINGS,
    ]
    for number, table in enumerate(tables):
        assert listed("Tokenizers", number) == set(table), number
    assert tokenizer_files.BUILDERS.keys() == tokenizer_folder.VOCABULARIES.keys() - {
        "tokenizer.json"
    }


def test_draft_heads() -> None:
    assert listed("Draft heads") == set(speculators.KEYS)
    assert listed("Draft heads", 1) == set(speculators.UNUSED_KEYS)


def test_calls_in_python() -> None:
    assert listed("Calls in Python", 0) == CallOptions.__annotations__.keys()
    assert listed("Calls in Python", 1) == SAMPLING


def test_the_command_line() -> None:
    text = (
        DOCUMENT.read_text(encoding="utf-8").split("\n## The command line\n")[1].split("\n## ")[0]
    )
    written = {
        row.split("|")[1].strip(" `"): {*re.findall(r"`([^`]+)`", row.split("|")[2])}
        for row in re.findall(r"^\| `.*$", text, flags=re.MULTILINE)
    }
    app = typer.main.get_command(cli.app)
    assert written == {
        name: {
            spelled
            for one in command.params
            if one.param_type_name == "option"
            for spelled in (*one.opts, *one.secondary_opts)
        }
        for name, command in app.commands.items()
    }


def test_triton() -> None:
    assert listed("Triton", 0) == INPUTS.keys()
    assert listed("Triton", 1) - {"true", "false"} == asking._KINDS.keys()
    assert listed("Triton", 2) == SETTINGS.keys()
    asked = CallOptions.__annotations__.keys() | SAMPLING
    missing = asked - asking._KINDS.keys()
    # Callables cannot be sent; there are no outputs for log-probabilities.
    own = {"sampling", "cancelled", "processors"}
    assert missing == own | {"logprobs", "logprobs_mode", "prompt_logprobs"}


def test_transformers() -> None:
    known = {*configuration.HONOURED, *configuration.REFUSED, *configuration.WITHOUT_EFFECT}
    assert listed("transformers") == known


# --- GGUF files -------------------------------------------------------------------------------

GGUF_TABLES: list[tuple[str, Iterable[str]]] = [
    ("architectures", gguf.ARCHITECTURES),
    ("tensors", [*gguf.TENSORS, gguf_rotation.FREQUENCIES]),
    ("types of tensors", [kind.name for kind in gguf_file.TENSOR_TYPES]),
    ("keys", gguf_keys.READ),
    ("neutral keys", gguf_keys.NEUTRAL),
    ("harmless keys", gguf_keys.HARMLESS),
    ("general", gguf_keys.GENERAL),
    ("tokenizer", gguf_keys.TOKENIZER),
    ("tokenizer, harmless", [*gguf_keys.TOKENIZER_HARMLESS, *gguf_keys.TOKENIZER_NEUTRAL]),
    ("vocabularies", gguf_vocabulary.KINDS),
    ("pre-tokenizers", gguf_pretokenizers.TYPES),
    ("refused pre-tokenizers", gguf_pretokenizers.REFUSED),
    ("ends", gguf_specials.END_TEXTS),
    ("fill-in", chain.from_iterable(gguf_specials.FILL_IN_TEXTS.values())),
]


@pytest.mark.parametrize(("place", "named"), [*enumerate(GGUF_TABLES)])
def test_gguf_lists_are_the_readers(place: int, named: tuple[str, Iterable[str]]) -> None:
    assert listed("GGUF files", place) == set(named[1])


def test_gguf_types_of_a_row_cut_alike() -> None:
    text = DOCUMENT.read_text(encoding="utf-8").split("| types |\n")[1].split("\n\n")[0]
    rows = [re.findall(r"`([^`]+)`", row) for row in text.splitlines()[1:]]
    rules = [{gguf_pretokenizers.TYPES[name].rule for name in row} for row in rows]
    assert all(len(found) == 1 for found in rules)
    assert len(set.union(*rules)) == len(rows)


class Seen(dict[str, Any]):
    """Metadata that remembers which keys were asked for."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.asked.add(key)
        return super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)


def test_gguf_keys_that_are_asked_for_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them, and no others, over the tests' models and vocabularies."""
    asked: set[str] = set()
    architectures = "|".join(gguf.ARCHITECTURES)
    for name in MODELS:
        write_model(tmp_path / "m.gguf", name)
        file = gguf_file.read_gguf(tmp_path / "m.gguf")
        seen = Seen(file.metadata)
        made = gguf_file.GgufFile(seen, file.tensors)
        monkeypatch.setattr(gguf, "read_gguf", lambda path, made=made: made)
        gguf.open_gguf(tmp_path / "m.gguf")
        asked |= seen.asked
    for keys in vocabularies().values():
        seen = Seen(keys)
        gguf_vocabulary.gguf_tokenizer(seen)
        asked |= seen.asked
    of_architecture = {re.sub(rf"^({architectures})\.", "*.", key) for key in asked}
    expected = {f"*.{key}" for key in gguf_keys.READ}
    expected |= {f"general.{key}" for key in (*gguf_keys.GENERAL,)} - {"general.alignment"}
    expected |= {f"tokenizer.{key}" for key in gguf_keys.TOKENIZER} | {"split.count"}
    values = {f"*.{key}" for key in gguf_keys.NEUTRAL}  # the value is asked for, to refuse it
    assert of_architecture - values == expected


# --- requests over HTTP ---------------------------------------------------------------------------

OBJECTS = {
    "Message": "messages",
    "TextPart": "a part of `content`",
    "StreamOptions": "`stream_options`",
    "Prediction": "`prediction`",
    "TextFormat": "`response_format`: `text`",
    "JsonObjectFormat": "`response_format`: `json_object`",
    "JsonSchemaFormat": "`response_format`: `json_schema`",
    "NamedSchema": "its `json_schema`",
    "StructuralTagFormat": "`response_format`: `structural_tag`",
    "TagStructure": "one of its `structures`",
    "StructuredOutputs": "`structured_outputs`",
}
"""The objects of requests, and what the document calls them."""


def test_requests_over_http() -> None:
    section = "Requests over HTTP"
    classes = {
        made.__name__: made
        for made in vars(requests).values()
        if isinstance(made, type) and issubclass(made, requests.Body) and made is not requests.Body
    }
    bodies = {"GenerateRequest", "ChatRequest", "CompletionRequest"}
    assert classes.keys() == {*OBJECTS, *bodies}
    common = classes["GenerateRequest"].followed()
    assert listed(section, 0) == common
    assert listed(section, 1) == classes["ChatRequest"].followed() - common
    assert listed(section, 2) == classes["CompletionRequest"].followed() - common
    rows = section_text(section).splitlines()
    for name, label in OBJECTS.items():
        [row] = [row for row in rows if row.endswith(f"` | {label} |")]
        assert set(re.findall(r"`([^`]+)`", row.split("|")[1])) == classes[name].followed()
    assert listed(section, 4) == set().union(*(one.others.harmless for one in classes.values()))
    assert listed(section, 5) == set().union(*(one.others.refused for one in classes.values()))
