"""Small tokenizers of several kinds, trained on a little text: of equal pairs it takes any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from specplug.spelling import Spelling

TEXT = (
    "The quick brown fox jumps over the lazy dog. The quickest foxes were jumping, and lazier "
    "dogs slept on; größere Füchse übersprangen müde Hunde.\n\nfor fox in foxes:\n"
    "    jump(fox, over=dog)\n    print('jumped', 12345)\n素早い狐が犬を飛び越える。 🦊🐶 "
    "The end, the very end of the foxes."
)
END, USER = "<|end|>", "<|user|>"


@cache
def byte_level(
    tokens: int, special: Sequence[str] = (END, USER), text: str = TEXT, *, begin: str = ""
) -> Tokenizer:
    """Byte-level BPE; ``begin``: a special token that it puts before a text."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=256 + tokens, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text], trainer)
    _add(made, special, begin)
    return made


@cache
def sentencepiece(tokens: int, special: Sequence[str] = (END,), *, begin: str = "") -> Tokenizer:
    """Of SentencePiece's kind: spaces are marked, and bytes without a token are named."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    trainer = trainers.BpeTrainer(vocab_size=tokens, show_progress=False, limit_alphabet=60)
    made.train_from_iterator([TEXT], trainer)
    data = json.loads(made.to_str())
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    data["model"]["vocab"] = {
        token: i for i, token in enumerate([*names, *sorted(data["model"]["vocab"])])
    }
    data["model"] |= {"byte_fallback": True, "fuse_unk": True}
    made = Tokenizer.from_str(json.dumps(data))
    made.pre_tokenizer = None
    made.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    _add(made, special, begin)
    return made


def words() -> Tokenizer:
    """A word a token: what text tokens stand for depends on their neighbours."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", "a", "b"])}, "?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([AddedToken(END)])
    return made


def spelling_of(tokenizer: Tokenizer, end: str = END, begin: str = "") -> Spelling:
    roles = {"eos_token": end} | ({"bos_token": begin} if begin else {})
    return Spelling(tokenizer, special_tokens=roles, stop_token_ids=[tokenizer.token_to_id(end)])


def _add(tokenizer: Tokenizer, special: Sequence[str], begin: str) -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer.add_special_tokens(
        [AddedToken(token) for token in (*special, *filter(None, [begin]))]
    )
    if begin:
        tokenizer.post_processor = TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, tokenizer.token_to_id(begin))]
        )
