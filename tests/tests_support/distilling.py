"""What tiny targets say and think, as records that heads learn from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specplug.distilling.batches import Batch, Collator, pieces_of
from specplug.distilling.heads import NORMS, head_shape, new_head, save_head
from specplug.distilling.options import TrainingOptions
from specplug.distilling.shards import Record, Shards, ShardWriter
from specplug.distilling.training import train
from specplug.export.head import Head
from specplug.export.source import Source
from specplug.types import Int32Array
from tests_support.heads import features_of, own_text

TINY_LAYERS = (0, 1, 2)
LIKELIEST = 8
WHOLE = np.arange(260, dtype=np.int32)
SOME = np.arange(3, 260, 2, dtype=np.int32)


def record_of(
    model: Any, number: int, tokens: list[int], begin: int, likeliest: int = LIKELIEST
) -> Record:
    """A text, and what a model thinks of it."""
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, begin - 1 : -1]
    top = logits.topk(likeliest)
    return Record(
        id=number,
        tokens=np.array(tokens, dtype=np.int32),
        begin=begin,
        states=features_of(model, tokens, TINY_LAYERS)[0, :-1].bfloat16(),
        ids=top.indices.numpy().astype(np.int32),
        logits=top.values.numpy(),
    )


def write_records(folder: Path, records: Sequence[Record]) -> Shards:
    """A folder of records, in files of a few."""
    with ShardWriter(folder, most_bytes=200_000) as writer:
        for record in records:
            writer.add(record)
    return Shards(folder)


def write_own_texts(
    folder: Path, model: Any, prompts: Sequence[list[int]], count: int, repeats: int = 1
) -> Shards:
    """What a model says greedily after prompts, each so often.

    Each time the prompt ends a token later: answers to the same one are held out together, and
    these texts are to be learnt by heart, the ones to measure on as well.
    """
    texts = [own_text(model, prompt, count) for prompt in prompts] * repeats
    begins = [len(prompt) + time for time in range(repeats) for prompt in prompts]
    return write_records(
        folder,
        [
            record_of(model, number, text, begin)
            for number, (text, begin) in enumerate(zip(texts, begins, strict=True))
        ],
    )


def learn(folder: Path, source: Source, shards: Shards) -> Path:
    """A head that knows some texts by heart."""
    vocabulary = np.arange(source.config.vocab_size, dtype=np.int32)
    head = tiny_head(source, vocabulary)
    options = TrainingOptions(
        epochs=30, batch=256, row=128, own_steps=3, held_out=0.15, evaluate_every=40,
        learning_rate=1.5e-2, precision="fp32",
    )  # fmt: skip
    train(shards, head, vocabulary, folder.with_name("training"), options)
    return save_head(folder, head, source, None)


def random_records(
    count: int, seed: int = 0, vocab_size: int = 260, width: int = 192
) -> list[Record]:
    """Of no model, of various lengths."""
    random = np.random.default_rng(seed)
    made = []
    for number in range(count):
        length = int(random.integers(4, 60))
        begin = int(random.integers(1, length - 1))
        answer = (length - begin, LIKELIEST)
        made.append(
            Record(
                id=number,
                tokens=random.integers(0, vocab_size, length).astype(np.int32),
                begin=begin,
                states=torch.from_numpy(random.normal(size=(length - 1, width))).bfloat16(),
                ids=np.array(
                    [random.permutation(vocab_size)[:LIKELIEST] for _ in range(answer[0])]
                ).astype(np.int32),
                logits=random.normal(size=answer).astype(np.float32),
            )
        )
    return made


def tiny_head(source: Source, vocabulary: Int32Array, seed: int = 0, **norms: bool) -> Head:
    """An untrained one for a tiny target."""
    shape = head_shape(source.config, TINY_LAYERS, len(vocabulary), 600, {**NORMS, **norms})
    return new_head(shape, source, vocabulary, seed)


def batch_of(
    records: Sequence[Record], vocabulary: Any = WHOLE, row: int = 600, steps: int = 3
) -> Batch:
    """The texts side by side."""
    pieces = [
        piece
        for place, record in enumerate(records)
        for piece in pieces_of(place, len(record.tokens), record.begin, row)
    ]
    return Collator(records, vocabulary, 260, steps)(pieces)
