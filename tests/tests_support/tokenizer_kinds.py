"""Tokenizers of all kinds that models have, for tests of whatever shows text.

The fixture ``kind`` of ``conftest.py`` gives each of :data:`KINDS` in turn.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers

import specplug
from specplug.engines.fake import FakeEngine
from tests_support.made_tokenizers import END, TEXT, USER, byte_level, sentencepiece, words

BEGIN, TURN = "<s>", "<turn>"
TEMPLATE = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
PADDING = 7  # rows of the model that no token has


@dataclass(frozen=True)
class Kind:
    """A tokenizer, and what a model with it has."""

    name: str
    backend: tokenizers.Tokenizer
    tokenizer: specplug.Tokenizer
    end: str
    """The text of its end token, which is flagged special or not."""

    @property
    def end_id(self) -> int:
        return self.tokenizer.stop_token_ids[0]

    @property
    def vocab_size(self) -> int:
        """Rows of the model."""
        return self.backend.get_vocab_size() + PADDING

    @property
    def special(self) -> bool:
        """Whether the end token is flagged special."""
        return self.tokenizer.detokenizer.is_special(self.end_id)

    @property
    def exact(self) -> bool:
        """Whether tokens tell the text one by one, as all that models have do."""
        return self.name not in ("words", "wordpiece", "suffixes")

    @cached_property
    def transformers(self) -> Any:
        """The same tokenizer in transformers."""
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast(tokenizer_object=self.backend)


class Script:
    """Rows of a model that answers as it is told to, whatever the prompt."""

    def __init__(self, kind: Kind) -> None:
        self._kind = kind
        self._prompt, self._answer = 0, [kind.end_id]

    def say(self, prompt: Sequence[int], answer: Sequence[int]) -> None:
        """After a prompt of so many tokens these come, and then the end token."""
        self._prompt, self._answer = len(prompt), [*answer, self._kind.end_id]

    def row(self, prefix: tuple[int, ...]) -> np.ndarray:
        """Scores after a prefix; of tokens that are not chosen they are random."""
        made = np.random.default_rng([len(prefix), prefix[-1]]).normal(size=self._kind.vocab_size)
        place = len(prefix) - self._prompt
        if 0 <= place < len(self._answer):
            made[self._answer[place]] = 9.0
        return made

    def engine(self, rows: int = 1) -> FakeEngine:
        return FakeEngine(
            self.row, vocab_size=self._kind.vocab_size, max_batch=rows, max_length=400
        )


def _gemma() -> tokenizers.Tokenizer:
    """SentencePiece without a space put before the text, and none stripped."""
    data = json.loads(sentencepiece(300, (END, USER), begin=BEGIN).to_str())
    data["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    data["decoder"]["decoders"].pop()
    return tokenizers.Tokenizer.from_str(json.dumps(data))


def _metaspace() -> tokenizers.Tokenizer:
    """Of T5's kind: no byte tokens, a mark before each word."""
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    trainer = trainers.BpeTrainer(
        vocab_size=300, show_progress=False, special_tokens=["<unk>", END]
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def _with_turn(made: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """With an end token that is not flagged special."""
    copy = tokenizers.Tokenizer.from_str(made.to_str())
    copy.add_tokens([AddedToken(TURN, special=False, normalized=False)])
    return copy


def _wordpiece() -> tokenizers.Tokenizer:
    vocabulary = ["[UNK]", "a", "b", "##c", "##d", "'", ".", "##'", "n't", "e"]
    made = tokenizers.Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]")
    )
    made.decoder = decoders.WordPiece(cleanup=False)
    made.add_special_tokens([AddedToken(END)])
    return made


def _suffixes() -> tokenizers.Tokenizer:
    """Words end with a suffix, which the last token of a text does not show."""
    vocabulary = ["a", "b", "a</w>", "b</w>", "c</w>"]
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, []))
    made.decoder = decoders.BPEDecoder()
    made.add_special_tokens([AddedToken(END)])
    return made


def _added() -> tokenizers.Tokenizer:
    """Byte-level, with added tokens that are no letters of bytes, or look like some."""
    made = tokenizers.Tokenizer.from_str(byte_level(60).to_str())
    made.add_tokens(["<狐>", " x ", "Ġy", "a b", "<é>"])
    return made


_MADE = {
    "byte-level": lambda: byte_level(120),
    "byte-level-bos": lambda: byte_level(60, begin=BEGIN),
    "byte-level-turns": lambda: _with_turn(byte_level(60)),
    "sentencepiece": lambda: sentencepiece(300, (END, USER)),
    "sentencepiece-bos": lambda: sentencepiece(300, (END, USER), begin=BEGIN),
    "sentencepiece-turns": lambda: _with_turn(sentencepiece(300, begin=BEGIN)),
    "gemma": _gemma,
    "metaspace": _metaspace,
    "byte-level-added": _added,
    "words": words,
    "wordpiece": _wordpiece,
    "suffixes": _suffixes,
}
KINDS = tuple(_MADE)
LANGUAGE_MODELS = KINDS[:8]
"""Those that generating models have."""


@cache
def made_kind(name: str) -> Kind:
    """The kind of a name; it is made once."""
    backend = _MADE[name]()
    end = TURN if backend.token_to_id(TURN) is not None else END
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        backend.save(str(path))
        tokenizer = specplug.Tokenizer(
            path, stop_token_ids=[backend.token_to_id(end)], chat_template=TEMPLATE
        )
    return Kind(name, backend, tokenizer, end)
