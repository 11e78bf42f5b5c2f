"""The tokenizer of a Hugging Face folder, read without running anything that lies there.

``tokenizer.json`` says it all and is taken as it is: transformers' ``AutoTokenizer`` would rebuild
some (``GPT2Tokenizer``, ``LlamaTokenizer``) from the vocabulary alone, and lose how text is split.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from specplug.export.folders import check_files
from specplug.export.tokenizer_files import BUILDERS
from specplug.export.tokenizer_texts import first_line, read_json
from specplug.export.tokenizers import SourceTokenizer
from specplug.text import whole_encoding
from specplug.types import ExportError

VOCABULARIES = {
    "tokenizer.json": "the tokenizer; whatever else is there adds names and a template to it",
    "vocab.json": "with merges.txt, byte-level BPE of the class that tokenizer_config.json names",
    "merges.txt": "as vocab.json",
    "tokenizer.model": "a SentencePiece model",
}
"""Files that hold a tokenizer, the first that is there is read."""

COMPANIONS = {
    "tokenizer_config.json": "names of special tokens, added tokens, the chat template",
    "special_tokens_map.json": "names of special tokens, where tokenizer_config.json has none",
    "added_tokens.json": "tokens beside the vocabulary, where tokenizer_config.json has none",
    "chat_template.jinja": "the chat template, before that of tokenizer_config.json",
    "additional_chat_templates": "more of them by name; that of the name default is used",
    "chat_template.json": "the chat template, if no other file has one",
    "config.json": "eos_token_id, and that of text_config",
    "generation_config.json": "eos_token_id",
}
"""Files that add to it."""

UNREADABLE = {
    "vocab.txt": "WordPiece",
    "tekken.json": "Mistral's own format",
    "tiktoken.model": "tiktoken's format",
    "qwen.tiktoken": "tiktoken's format",
    "spiece.model": "SentencePiece of an encoder's",
    "sentencepiece.bpe.model": "SentencePiece of an encoder's",
}
"""Files that hold a tokenizer of a kind that is read from ``tokenizer.json`` alone."""

SETTINGS = {
    "tokenizer_class": "how a folder without tokenizer.json is read",
    "bos_token": "a special token's name",
    "eos_token": "a special token's name; it ends an answer",
    "unk_token": "a special token's name",
    "sep_token": "a special token's name",
    "pad_token": "a special token's name",
    "cls_token": "a special token's name",
    "mask_token": "a special token's name",
    "additional_special_tokens": "special tokens",
    "extra_special_tokens": "special tokens",
    "model_specific_special_tokens": "special tokens by name",
    "added_tokens_decoder": "tokens beside the vocabulary",
    "chat_template": "a template, or several by name: that of the name default is used",
    "add_bos_token": "read where there is no tokenizer.json, which says so itself",
    "add_eos_token": "as add_bos_token",
    "legacy": "read with tokenizer.model",
    "add_prefix_space": "refused where it contradicts tokenizer.json",
    "fix_mistral_regex": "as transformers applies it",
    "split_special_tokens": "true is refused",
}
"""Keys of ``tokenizer_config.json`` that change the tokens; the others do not."""


def folder_tokenizer(
    folder: Path, vocab_size: int, stated: Mapping[str, Any] | None = None
) -> SourceTokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it holds no file of one.

    Args:
        folder: where ``tokenizer.json`` and its companions lie.
        vocab_size: of the model.
        stated: end tokens by the file that states them, beside those of :func:`stated_end_tokens`.

    Raises:
        ExportError: there are files of a tokenizer, and they cannot be read, or contradict one
            another or the model.
    """
    check_files(folder)
    found = next((name for name in VOCABULARIES if (folder / name).is_file()), None)
    if found is None:
        _refuse_unreadable(folder)
        return None
    settings = read_json(folder / "tokenizer_config.json")
    _check_settings(settings)
    with tempfile.TemporaryDirectory(prefix="specplug-tokenizer-") as made:
        place = _with_tokenizer_json(folder, found, settings, Path(made))
        try:
            opened = transformers.PreTrainedTokenizerFast.from_pretrained(
                place, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # the libraries raise anything, bare Exception included
            raise ExportError(f"{folder / found} cannot be read: {first_line(error)}") from error
    backend = whole_encoding(opened.backend_tokenizer)
    if found == "tokenizer.json":
        _check_numbers(backend, read_json(folder / found))
    _check_prefix_space(backend, settings)
    special = {
        name: str(token)
        for name, token in opened.special_tokens_map.items()
        if isinstance(token, str)
    }
    special |= _class_defaults(folder, backend, settings) if found == "tokenizer.json" else {}
    ends = stated_end_tokens(folder) | dict(stated or {})
    eos = backend.token_to_id(special["eos_token"]) if "eos_token" in special else None
    return SourceTokenizer(
        json=backend.to_str(),
        stop_token_ids=end_tokens(ends | {"the tokenizer": eos}, vocab_size),
        special_tokens=special,
        chat_template=_chat_template(folder, opened.chat_template),
    )


def stated_end_tokens(folder: Path) -> dict[str, Any]:
    """What a folder's configurations say of end tokens, by file: an id, a list, or None."""
    config = read_json(folder / "config.json")
    text = config.get("text_config")
    generation = read_json(folder / "generation_config.json")
    return {
        "config.json": config.get("eos_token_id"),
        "text_config of config.json": text.get("eos_token_id") if isinstance(text, dict) else None,
        "generation_config.json": generation.get("eos_token_id"),
    }


def end_tokens(stated: Mapping[str, Any], vocab_size: int) -> tuple[int, ...]:
    """The union of what several files say of end tokens, in their order.

    Args:
        stated: by file, an id, a list of ids, or None.
        vocab_size: of the model.

    Raises:
        ExportError: one is no token of the model.
    """
    ends: dict[int, None] = {}
    for file, value in stated.items():
        for token in value if isinstance(value, list) else [] if value is None else [value]:
            if type(token) is not int or not 0 <= token < vocab_size:
                raise ExportError(
                    f"{file} says that token {token!r} ends an answer, and the model has tokens 0 "
                    f"to {vocab_size - 1}: correct its eos_token"
                )
            ends[token] = None
    return tuple(ends)


def _refuse_unreadable(folder: Path) -> None:
    remedy = (
        "write a tokenizer.json with transformers' save_pretrained, or remove it to have a bundle "
        "of token ids alone"
    )
    for name, kind in UNREADABLE.items():
        if (folder / name).is_file():
            raise ExportError(f"{folder} has {name} ({kind}) and no tokenizer.json: {remedy}")
    for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            raise ExportError(
                f"{folder} has {name}, but none of {', '.join(VOCABULARIES)}: copy the tokenizer's "
                f"other files, or remove {name} to have a bundle of token ids alone"
            )


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings.get("split_special_tokens"):
        raise ExportError(
            "tokenizer_config.json says split_special_tokens: true, which cuts the chat template's "
            "own tokens in pieces and is not supported: set it to false"
        )
    template = settings.get("chat_template")
    if template is not None and not isinstance(template, (str, list, dict)):
        raise ExportError(f"tokenizer_config.json's chat_template is {template!r:.40}: give a text")


def _check_numbers(backend: tokenizers.Tokenizer, content: Mapping[str, Any]) -> None:
    """Refuse added tokens that the library gives other numbers than the file, as it may in silence:
    those that leave a gap after the vocabulary, or are in it under another number.
    """
    for token in content.get("added_tokens") or []:
        number = backend.token_to_id(token["content"])
        if number != token["id"]:
            raise ExportError(
                f"tokenizer.json says that {token['content']!r} is token {token['id']}, and the "
                f"tokenizers library reads it as {number}: the file's numbers have gaps or repeat, "
                "so write it anew with the tool that made it"
            )


def _check_prefix_space(backend: tokenizers.Tokenizer, settings: Mapping[str, Any]) -> None:
    wanted = settings.get("add_prefix_space")
    found = json.loads(backend.to_str())["pre_tokenizer"] or {}
    for part in found.get("pretokenizers", [found]):
        has = part.get("add_prefix_space") if part.get("type") == "ByteLevel" else None
        if isinstance(wanted, bool) and has is not None and has != wanted:
            raise ExportError(
                f"tokenizer_config.json says add_prefix_space: {json.dumps(wanted)}, and "
                f"tokenizer.json {json.dumps(has)}: tools follow one or the other, so make them "
                "agree"
            )


def _chat_template(folder: Path, found: Any) -> str | None:
    if found is None:
        found = read_json(folder / "chat_template.json").get("chat_template")
    if not isinstance(found, dict):
        return None if found is None else str(found)
    if "default" not in found:
        raise ExportError(
            f"{folder} has chat templates of the names {', '.join(sorted(found))}, and none of the "
            "name default: write the one to be used into chat_template.jinja"
        )
    return str(found["default"])


def _class_defaults(
    folder: Path, backend: tokenizers.Tokenizer, settings: Mapping[str, Any]
) -> dict[str, str]:
    """The first and the last token of a class of tokenizers, where the folder names none."""
    said = {*settings, *read_json(folder / "special_tokens_map.json")}
    missing = [name for name in ("bos_token", "eos_token") if name not in said]
    if not missing:
        return {}
    try:
        opened = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception:  # a class that needs code of the folder's own, or another vocabulary
        return {}
    found = {name: getattr(opened, name, None) for name in missing}
    return {
        name: token
        for name, token in found.items()
        if isinstance(token, str) and backend.token_to_id(token) is not None
    }


def _with_tokenizer_json(folder: Path, found: str, settings: Mapping[str, Any], made: Path) -> Path:
    """A folder with a ``tokenizer.json`` that neither shortens nor pads, and what adds to it.

    Of ``tokenizer_config.json`` the keys of :data:`SETTINGS` and the names of special tokens.
    """
    if found == "tokenizer.json":
        content = read_json(folder / found)
        # The token that fills up would otherwise become a special one.
        text = json.dumps(content | {"truncation": None, "padding": None})
    else:
        text = BUILDERS[found](folder, settings).to_str()
    (made / "tokenizer.json").write_text(text, encoding="utf-8")
    for name in COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, made / name)
        elif (folder / name).is_dir():
            shutil.copytree(folder / name, made / name)
    if settings:
        kept = {k: v for k, v in settings.items() if k in SETTINGS or k.endswith("_token")}
        (made / "tokenizer_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return made
