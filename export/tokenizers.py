"""Tokenizers on their way from a source into a bundle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from specplug.bundle import TokenizerPart
from specplug.bundle_files import describe_file
from specplug.export.chat_templates import check_template
from specplug.spelling import Spelling
from specplug.text import whole_encoding


@dataclass(frozen=True, slots=True)
class SourceTokenizer:
    """What the bundle needs of a source's tokenizer."""

    json: str
    """The content of ``tokenizer.json``."""
    stop_token_ids: tuple[int, ...]
    special_tokens: Mapping[str, str]
    chat_template: str | None

    def __post_init__(self) -> None:
        """Refuse a chat template that could not be used.

        Raises:
            ExportError: the template does not parse, or does what is not allowed here.
        """
        if self.chat_template is not None:
            check_template(self.chat_template, self.special_tokens)


def vocabulary(tokenizer_json: str) -> dict[str, int]:
    """Every token of a ``tokenizer.json`` with its id, added tokens included."""
    data = json.loads(tokenizer_json)
    found = data["model"]["vocab"]
    tokens = (
        dict(found) if isinstance(found, dict) else {item[0]: i for i, item in enumerate(found)}
    )
    tokens.update({token["content"]: token["id"] for token in data.get("added_tokens", [])})
    return tokens


def encoder(tokenizer: SourceTokenizer | None) -> Callable[[str], list[int]] | None:
    """From text to token ids, special tokens as the tokenizer adds them; None without one."""
    if tokenizer is None:
        return None
    backend = whole_encoding(tokenizers.Tokenizer.from_str(tokenizer.json))
    return lambda text: list(backend.encode(text).ids)


def spelling(tokenizer: SourceTokenizer) -> Spelling:
    """The bytes of its tokens.

    Raises:
        ValueError: of a kind whose tokens do not tell the text.
    """
    return Spelling(
        whole_encoding(tokenizers.Tokenizer.from_str(tokenizer.json)),
        special_tokens=tokenizer.special_tokens,
        stop_token_ids=tokenizer.stop_token_ids,
    )


def write_tokenizer(
    tokenizer: SourceTokenizer, stage: Path, name: str = "tokenizer.json"
) -> TokenizerPart:
    """Write ``tokenizer.json``, or another name, into a bundle that is being made."""
    (stage / name).write_text(tokenizer.json, encoding="utf-8")
    tokens = sorted(vocabulary(tokenizer.json).items())
    return TokenizerPart(
        file=describe_file(stage, name),
        vocabulary_sha256=hashlib.sha256(repr(tokens).encode()).hexdigest(),
        stop_token_ids=list(tokenizer.stop_token_ids),
        special_tokens=dict(tokenizer.special_tokens),
        chat_template=tokenizer.chat_template,
    )
