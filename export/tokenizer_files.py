"""Tokenizers of folders without a ``tokenizer.json``: merges, and SentencePiece models.

transformers builds the first. It converts the second in ways that change tokens (leading spaces,
and all of them for some classes), so they are made here and proved equal to SentencePiece itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from specplug.export.tokenizer_texts import TEXTS, first_line, read_json
from specplug.types import ExportError, MissingExtraError

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
_SENTENCEPIECE_CLASSES = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")
_CONTROL, _DEFINED, _BYTE = 3, 4, 6  # types of a SentencePiece model's pieces


def from_merges(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """Byte-level BPE of ``vocab.json`` and ``merges.txt``, as transformers' class reads them.

    Raises:
        ExportError: a file is missing, or the class is none that knows how to split a text.
    """
    for name in ("vocab.json", "merges.txt"):
        if not (folder / name).is_file():
            raise ExportError(
                f"{folder} has no tokenizer.json, and not both vocab.json and merges.txt"
            )
    vocabulary = read_json(folder / "vocab.json")
    why = ""
    try:
        opened = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
        backend: tokenizers.Tokenizer = opened.backend_tokenizer
        found = backend.get_vocab(with_added_tokens=True)
        if any(found.get(token) != number for token, number in vocabulary.items()):
            why = f"{type(opened).__name__} reads other tokens"
        elif "ByteLevel" not in repr(backend.pre_tokenizer):
            why = f"{type(opened).__name__} does not say how a text is split"
    except Exception as error:  # the libraries raise anything, bare Exception included
        why = first_line(error)
    if why:
        raise ExportError(
            f"{folder} has vocab.json and merges.txt, which cannot be read ({why}): name the right "
            "tokenizer_class in tokenizer_config.json (GPT2Tokenizer, Qwen2Tokenizer), or add a "
            "tokenizer.json"
        )
    return backend


def from_sentencepiece(folder: Path, settings: Mapping[str, Any]) -> tokenizers.Tokenizer:
    """A SentencePiece model as a tokenizer of the same tokens.

    Raises:
        MissingExtraError: SentencePiece is not installed.
        ExportError: not a SentencePiece model, of a class that changes its tokens, or one whose
            tokens come out otherwise.
    """
    path = folder / "tokenizer.model"
    name = str(settings.get("tokenizer_class") or "LlamaTokenizer").removesuffix("Fast")
    if name not in _SENTENCEPIECE_CLASSES:
        raise ExportError(
            f"{path} of a {name} is not read, have {', '.join(_SENTENCEPIECE_CLASSES)}: write a "
            "tokenizer.json with transformers' save_pretrained"
        )
    try:
        from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
    except ImportError as error:
        raise MissingExtraError(
            f"{path.name} needs SentencePiece: pip install 'specplug[export]'"
        ) from error
    messages: Any = sentencepiece_model_pb2  # made by protobuf, without types
    try:
        content = path.read_bytes()
        model = messages.ModelProto.FromString(content)
        judge = SentencePieceProcessor(model_proto=content)
    except Exception as error:  # protobuf's, or RuntimeError
        raise ExportError(
            f"{path} is no SentencePiece model (one of tiktoken, perhaps): write a tokenizer.json "
            "with transformers' save_pretrained"
        ) from error
    made = _of_proto(model, legacy=settings.get("legacy") is not False)
    added = [piece.piece for piece in model.pieces if piece.type in (_CONTROL, _DEFINED)]
    for text in TEXTS:
        if any(token in text for token in added) or (
            settings.get("legacy") is False and text.startswith(" ")
        ):
            continue
        ours = made.encode(text, add_special_tokens=False).ids
        if ours != judge.encode(text):
            raise ExportError(
                f"{path} cannot be converted: SentencePiece gives other tokens for {text[:30]!r}; "
                "write a tokenizer.json with transformers' save_pretrained"
            )
    _frame(made, settings, judge)
    return made


def _of_proto(model: Any, *, legacy: bool) -> tokenizers.Tokenizer:
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    unknown, fallback = model.trainer_spec.unk_id, bool(model.trainer_spec.byte_fallback)
    if model.trainer_spec.model_type == model.trainer_spec.BPE:
        vocabulary = {piece: number for number, (piece, _) in enumerate(pieces)}
        made = tokenizers.Tokenizer(
            models.BPE(
                vocabulary,
                _merges(pieces, model),
                unk_token=pieces[unknown][0],
                fuse_unk=True,
                byte_fallback=fallback,
            )
        )
    elif model.trainer_spec.model_type == model.trainer_spec.UNIGRAM:
        made = tokenizers.Tokenizer(models.Unigram(pieces, unknown, fallback))
    else:
        raise ExportError("a SentencePiece model of words or characters is not read")
    steps: list[Any] = []
    charsmap = model.normalizer_spec.precompiled_charsmap
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if model.normalizer_spec.remove_extra_whitespaces:
        steps += [
            normalizers.Strip(),
            normalizers.Replace(tokenizers.Regex(" {2,}"), " "),
        ]
    prefix = model.normalizer_spec.add_dummy_prefix
    if prefix and legacy:
        steps.append(normalizers.Prepend(_SPACE))
    steps.append(normalizers.Replace(" ", _SPACE))
    made.normalizer = normalizers.Sequence(steps)
    if prefix and not legacy:
        made.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first", split=False
        )
    backwards = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*backwards, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
    added = [
        AddedToken(piece.piece, normalized=False, special=piece.type == _CONTROL)
        for piece in model.pieces
        if piece.type in (_CONTROL, _DEFINED)
    ]
    made.add_tokens([token for token in added if not token.special])
    made.add_special_tokens([token for token in added if token.special])
    return made


def _merges(pieces: list[tuple[str, float]], model: Any) -> list[tuple[str, str]]:
    """The pairs that make up each piece, the likeliest piece first, as SentencePiece does."""
    normal = {p.piece: i for i, p in enumerate(model.pieces) if p.type not in (_CONTROL, _BYTE)}
    found = []
    for piece, number in normal.items():
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in normal and right in normal:
                found.append((-pieces[number][1], number, normal[left], normal[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def _frame(made: tokenizers.Tokenizer, settings: Mapping[str, Any], model: Any) -> None:
    """The tokens before and after a text: the first unless ``add_bos_token`` says otherwise."""
    begin = [model.id_to_piece(model.bos_id())] if settings.get("add_bos_token", True) else []
    end = [model.id_to_piece(model.eos_id())] if settings.get("add_eos_token") else []
    if begin or end:
        made.post_processor = processors.TemplateProcessing(
            single=" ".join([*begin, "$A", *end]),
            special_tokens=[(token, made.token_to_id(token)) for token in {*begin, *end}],
        )


BUILDERS: dict[str, Callable[[Path, Mapping[str, Any]], tokenizers.Tokenizer]] = {
    "vocab.json": from_merges,
    "merges.txt": from_merges,
    "tokenizer.model": from_sentencepiece,
}
"""By the file that is there."""
