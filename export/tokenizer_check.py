"""Is a bundle's tokenizer the one of its source? What ``specplug verify --source`` compares."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from specplug.bundle import Bundle, TokenizerPart, open_tokenizer
from specplug.export.from_onnx import onnx_tokenizer
from specplug.export.hub import fetch_snapshot
from specplug.export.source import open_source
from specplug.export.tokenizer_folder import end_tokens, stated_end_tokens
from specplug.export.tokenizer_texts import LONG_TEXT, TEXTS
from specplug.export.tokenizers import SourceTokenizer, vocabulary, write_tokenizer
from specplug.text import Messages, Tokenizer

CONVERSATIONS: Sequence[Messages] = (
    [{"role": "user", "content": "What is 12 + 30?\n\nAnswer briefly."}],
    [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "größer?  日本 🦊"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": " and then?\n"},
    ],
)
_SPECIAL = 40  # added tokens that texts are made with
_RANDOM = 20  # sequences of random tokens that are decoded

Outcome = tuple[bool | None, str, dict[str, Any]]
"""Whether they are the same (None: there is none to compare), a summary, and details."""


@dataclass(frozen=True, slots=True)
class _Judge:
    """A tokenizer as the source's own tool reads it."""

    name: str
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    chat: Callable[[Messages], list[int]] | None
    """None: it renders no template."""
    note: str = ""


def compare_tokenizers(bundle: Bundle, source: Path) -> Outcome:
    """Compare tokens of texts, their decoding, conversations, end tokens and the template.

    Raises:
        ExportError: the source's tokenizer cannot be read.
    """
    if not source.exists():
        source = fetch_snapshot(str(source))[0]
    from_graph = "torch" not in bundle.manifest.target.provenance.tools
    theirs = onnx_tokenizer(source) if from_graph else open_source(source).tokenizer
    ours, part = bundle.tokenizer(), bundle.manifest.tokenizer
    if ours is None and theirs is None:
        return _compare_ends(bundle, source)
    if ours is None or part is None or theirs is None:
        having, missing = ("the source", "the bundle") if theirs else ("the bundle", "the source")
        return False, f"{having} has a tokenizer, and {missing} has none: export again", {}
    judge = _read_by_its_tool(source, theirs)
    found = list(_differences(ours, part, theirs, judge))
    texts = len(_texts(theirs))
    details = {"judge": judge.name, "texts": texts, "differences": found, "note": judge.note}
    if found:
        return False, f"{found[0]}: export the model again", details
    chats = f", {len(CONVERSATIONS)} conversations" if ours.has_chat_template else ""
    return (
        True,
        f"{texts} texts{chats} and {len(ours.stop_token_ids)} end tokens are those of {judge.name}"
        + (f"; {judge.note}" if judge.note else ""),
        details,
    )


def _compare_ends(bundle: Bundle, source: Path) -> Outcome:
    """Of a bundle of token ids alone."""
    here = bundle.manifest.stop_token_ids or []
    there = list(end_tokens(stated_end_tokens(source), bundle.manifest.target.vocab_size))
    if {*here} != {*there}:
        ends = f"it stops at {_short(here)}, the source at {_short(there)}"
        return False, f"{ends}: export the model again", {}
    return None, f"neither side has one; {len(here)} end tokens are the source's", {}


def _differences(
    ours: Tokenizer, part: TokenizerPart, theirs: SourceTokenizer, judge: _Judge
) -> Iterator[str]:
    if ours.backend.get_vocab(with_added_tokens=True) != vocabulary(theirs.json):
        yield "tokens of other names or numbers than the source's"
    for text in _texts(theirs):
        here, there = ours.encode(text), judge.encode(text)
        if here != there:
            yield f"{text[:40]!r} is {_short(here)} here and {_short(there)} by {judge.name}"
    for tokens in _sequences(ours, theirs):
        if ours.decode(tokens) != judge.decode(tokens):
            yield (
                f"tokens {_short(tokens)} are {ours.decode(tokens)[:30]!r} here and "
                f"{judge.decode(tokens)[:30]!r} by {judge.name}"
            )
    if {*ours.stop_token_ids} != {*theirs.stop_token_ids}:
        yield f"it stops at {_short(ours.stop_token_ids)}, the source at " + _short(
            theirs.stop_token_ids
        )
    if part.chat_template != theirs.chat_template:
        yield "its chat template is not the source's"
    if ours.has_chat_template and judge.chat is not None:
        for messages in CONVERSATIONS:
            here, there = _chat(ours.encode_prompt, messages), _chat(judge.chat, messages)
            if here != there:
                last = messages[-1]["content"]
                yield (
                    f"the conversation that ends in {last!r} is {_short(here)} here and "
                    f"{_short(there)} by {judge.name}"
                )


def _chat(encode: Callable[[Messages], list[int]], messages: Messages) -> list[int]:
    """A conversation's tokens; none where the template refuses it."""
    try:
        return encode(messages)
    except Exception:  # a template can raise anything
        return []


def _texts(theirs: SourceTokenizer) -> list[str]:
    added = [token["content"] for token in json.loads(theirs.json).get("added_tokens", [])]
    inside = [f"a{token} b {token}c" for token in added[-_SPECIAL:]]
    return [*TEXTS, *inside, LONG_TEXT]


def _sequences(ours: Tokenizer, theirs: SourceTokenizer) -> Iterator[list[int]]:
    """Tokens to decode: of the texts, and random ones, which are seldom whole characters."""
    for text in TEXTS:
        yield ours.encode(text)
    known = np.array(sorted(vocabulary(theirs.json).values()))
    random = np.random.default_rng(0)
    for _ in range(_RANDOM):
        yield random.choice(known, size=30).tolist()


def _short(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} tokens {str(list(tokens)[:8])[1:-1]}{', …' if len(tokens) > 8 else ''}"


# --- the source's own tool ---------------------------------------------------------------------


def _read_by_its_tool(source: Path, theirs: SourceTokenizer) -> _Judge:
    if source.is_file():
        return _of_our_reader(theirs, "the GGUF file, as specplug reads it (llama.cpp is not here)")
    if (source / "tokenizer.json").is_file():
        return _of_transformers(source)
    if (source / "tokenizer.model").is_file() and not (source / "vocab.json").is_file():
        return _of_our_reader(theirs, "tokenizer.model, equal to SentencePiece's at each export")
    opened = _auto(source)
    return _of(opened, f"transformers' {type(opened).__name__}")


def _of_our_reader(theirs: SourceTokenizer, name: str) -> _Judge:
    with tempfile.TemporaryDirectory(prefix="specplug-tokenizer-") as folder:
        opened = open_tokenizer(Path(folder), write_tokenizer(theirs, Path(folder)))
    chat = opened.encode_prompt if opened.has_chat_template else None
    return _Judge(name, encode=opened.encode, decode=opened.decode, chat=chat)


def _of_transformers(source: Path) -> _Judge:
    """``tokenizer.json`` by transformers; by its ``AutoTokenizer`` unless that rebuilds it."""
    try:
        opened: Any = _auto(source)
        name = f"transformers' {type(opened).__name__}"
    except Exception:  # a class that needs code of the folder's own, or another vocabulary
        opened, name = None, "transformers' AutoTokenizer"
    plain = transformers.PreTrainedTokenizerFast.from_pretrained(
        source, local_files_only=True, trust_remote_code=False
    )
    if opened is not None and all(
        opened(text).input_ids == plain(text).input_ids for text in TEXTS
    ):
        return _of(opened, name)
    note = f"{name} does not read tokenizer.json as it is, and gives other tokens"
    return _of(plain, "transformers' PreTrainedTokenizerFast", note)


def _auto(source: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(
        source, local_files_only=True, trust_remote_code=False
    )


def _of(opened: Any, name: str, note: str = "") -> _Judge:
    def chat(messages: Messages) -> list[int]:
        tokens: list[int] = opened.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return tokens

    return _Judge(
        name,
        encode=lambda text: list(opened(text, verbose=False).input_ids),
        decode=lambda tokens: str(
            opened.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ),
        chat=chat if isinstance(opened.chat_template, (str, dict)) else None,
        note=note,
    )
