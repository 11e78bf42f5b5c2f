"""The tokenizer of a GGUF file: its vocabulary as llama.cpp reads it.

llama.cpp finds special tokens in the text first, cuts what lies between by the pre-tokenizer's
rule, and merges: in a vocabulary of kind ``gpt2`` by the order of the merges, in one of kind
``llama`` (SentencePiece) by the scores of the tokens that the merges make.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from specplug.export.gguf_pretokenizers import pre_tokenizer, pre_type
from specplug.export.gguf_specials import SpecialTokens
from specplug.export.tokenizers import SourceTokenizer

KINDS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece, merged by scores, with byte fallback",
    "none": "no vocabulary: the bundle takes token ids",
    "no_vocab": "no vocabulary: the bundle takes token ids",
}
"""Values of ``tokenizer.ggml.model`` that are read."""

_REFUSED = {
    "t5": "a unigram vocabulary",
    "bert": "a WordPiece vocabulary",
    "rwkv": "RWKV's own vocabulary",
    "plamo2": "PLaMo's own vocabulary",
    "gemma4": "a vocabulary of the text's own characters",
    "whitespace": "a vocabulary of whole words",
    "hybriddna": "a vocabulary of DNA",
}
_LETTERS = frozenset(pre_tokenizers.ByteLevel.alphabet())
_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes one
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def gguf_tokenizer(metadata: Mapping[str, Any]) -> SourceTokenizer | None:
    """The tokenizer that a file's metadata describes; None if it has no vocabulary.

    Raises:
        ValueError: a kind that is not read, or a vocabulary that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model", "none")
    if kind not in KINDS:
        reason = f", {_REFUSED[kind]}," if kind in _REFUSED else ""
        raise ValueError(
            f"tokenizer.ggml.model {kind!r}{reason} is not supported: have {', '.join(KINDS)}"
        )
    if kind in ("none", "no_vocab"):
        return None
    specials = SpecialTokens(metadata)
    backend = _byte_level(metadata, specials) if kind == "gpt2" else _pieces(metadata, specials)
    backend.add_tokens(specials.added())
    before, after = specials.around()
    if before or after:
        around = [token for token in (before, after) if token is not None]
        backend.post_processor = processors.TemplateProcessing(
            single=[*([before[0]] if before else []), "$A", *([after[0]] if after else [])],
            special_tokens=around,
        )
    template = metadata.get("tokenizer.chat_template")
    return SourceTokenizer(
        json=backend.to_str(),
        stop_token_ids=tuple(sorted(specials.ends())),
        special_tokens=specials.roles(),
        chat_template=template,
    )


def _byte_level(metadata: Mapping[str, Any], specials: SpecialTokens) -> Tokenizer:
    named = metadata.get("tokenizer.ggml.pre") or "default"
    how = pre_type(named)
    merges: dict[tuple[str, str], None] = {}  # of two merges of the same pieces the first holds
    for merge in _array(metadata, "tokenizer.ggml.merges"):
        left, _, right = merge[1:].partition(" ")
        merges.setdefault((merge[0] + left, right))
    ids = specials.ids
    for left, right in merges:
        for token in (left, right, left + right):
            if token not in ids:
                raise ValueError(
                    f"tokenizer.ggml.merges has {left!r} {right!r}, and {token!r} is no token"
                )
    for number in specials.user_defined():
        token = specials.texts[number]
        if not token.isascii() and set(token) <= _LETTERS:
            raise ValueError(
                f"the user-defined token {number}, {token!r}, cannot be told from the bytes that "
                "its letters stand for in byte-level BPE"
            )
    backend = Tokenizer(
        models.BPE(
            vocab=_used(specials, list(merges)),
            merges=list(merges),
            ignore_merges=how.ignore_merges,
        )
    )
    backend.pre_tokenizer = pre_tokenizer(how.rule)
    backend.decoder = decoders.ByteLevel()
    return backend


def _pieces(metadata: Mapping[str, Any], specials: SpecialTokens) -> Tokenizer:
    scores = _array(metadata, "tokenizer.ggml.scores")
    ids = specials.ids
    if len(scores) < len(ids):
        raise ValueError(f"tokenizer.ggml.scores has {len(scores)} for {len(ids)} tokens")
    missing = [name for name in _BYTES if name not in ids]
    if missing:
        raise ValueError(f"the vocabulary has no token for the byte {missing[0]}")
    merges = _merges(ids, scores, specials)
    unknown = specials.role("unknown")
    backend = Tokenizer(
        models.BPE(
            vocab=_used(specials, merges),
            merges=merges,
            byte_fallback=True,
            fuse_unk=True,
            unk_token=None if unknown is None else specials.texts[unknown],
        )
    )
    spaced = metadata.get("tokenizer.ggml.add_space_prefix", True)
    steps: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    replace = normalizers.Replace(" ", _SPACE)
    if spaced:  # before the text, and again after every special token
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = replace
    backend.decoder = decoders.Sequence(steps)
    return backend


def _used(specials: SpecialTokens, merges: Sequence[tuple[str, str]]) -> dict[str, int]:
    """The tokens without those that have no text, and that no text gives."""
    needed = {left + right for left, right in merges} | {side for pair in merges for side in pair}
    return {
        token: number
        for token, number in specials.ids.items()
        if not specials.is_unused(number) or token in needed or len(token) == 1
    }


def _merges(
    ids: Mapping[str, int], scores: Sequence[float], specials: SpecialTokens
) -> list[tuple[str, str]]:
    """The pairs of tokens that make a token, those of the highest score first.

    Raises:
        ValueError: llama.cpp would merge in an order that no list of merges gives.
    """
    found: list[tuple[float, int, int, str, str]] = []
    tied: dict[float, set[str]] = defaultdict(set)
    for token, number in ids.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            for side in (left, right):
                if len(side) == 1 and side not in ids and specials.is_normal(number):
                    other = right if side == left else left
                    if len(other) == 1 or other in ids:
                        raise ValueError(f"token {token!r} has {side!r}, which is no token itself")
            if left in ids and right in ids:
                found.append((-scores[number], ids[left], ids[right], left, right))
                if specials.is_normal(number):
                    tied[scores[number]].add(token)
    for score, tokens in tied.items():
        if len(tokens) > 1:
            first, second = sorted(tokens)[:2]
            raise ValueError(
                f"tokenizer.ggml.scores gives {len(tokens)} tokens, {first!r} and {second!r} among "
                f"them, the score {score:g}: what is merged first is not known"
            )
    return [(left, right) for *_, left, right in sorted(found)]


def _array(metadata: Mapping[str, Any], key: str) -> list[Any]:
    found = metadata.get(key)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{key} is missing")
    return found
