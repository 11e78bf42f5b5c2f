"""What a head will take, before anything is done: time, disk and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from specplug.distilling.batches import ABREAST, Collator, grouped, pieces_of
from specplug.distilling.optimizer import HeadOptimizer
from specplug.distilling.options import TrainingOptions
from specplug.distilling.shards import Record
from specplug.distilling.training import products, train_step
from specplug.export.head import Head, HeadShape

_TRIALS = 3  # steps; the first prepares what the others use


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How much text there will be."""

    records: int
    prompt_tokens: int
    answer_tokens: int
    likeliest: int
    """Tokens whose logits are kept of each of an answer's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What answers and training will take."""

    answer_seconds: float
    """Of the target's answers, hidden states included."""
    training_seconds: float
    """If it is not ended early; measuring acceptance included."""
    steps: int
    answer_bytes: int
    """On disk."""
    training_bytes: int
    """On disk: checkpoint, and the head twice, while one is replaced."""
    memory_bytes: int
    """Of training, without Python and its libraries."""


def plan(
    counts: Counts,
    shape: HeadShape,
    options: TrainingOptions,
    *,
    answer_speed: float,
    entry_seconds: float,
) -> Plan:
    """Add up what was measured.

    Args:
        counts: how much text.
        shape: of the head.
        options: of its training.
        answer_speed: tokens a second of the target's answers.
        entry_seconds: of a training step, an entry: :func:`time_step` tells.
    """
    tokens = counts.prompt_tokens + counts.answer_tokens
    held_out = min(options.held_out * counts.records, options.most_held_out)
    measured = tokens * held_out / max(counts.records, 1)
    steps = max(round((tokens - measured) * options.epochs / options.batch), 1)
    evaluations = steps // options.evaluation_steps(steps) + 1
    trained = trained_weights(shape)
    size = shape.hidden_size
    # Of a guessing entry at an own step: what autograd keeps, attention's shares included.
    kept = 12 * size + 4 * shape.intermediate_size + 3 * shape.heads * options.row // 2
    activations = 4 * options.batch * (options.own_steps * kept + 2 * shape.features)
    logits = 3 * 2048 * shape.vocab_size * 4
    return Plan(
        answer_seconds=counts.answer_tokens / answer_speed,
        # Measuring has no gradients to compute, which are two thirds of a step.
        training_seconds=entry_seconds * (steps * options.batch + evaluations * measured / 3),
        steps=steps,
        answer_bytes=tokens * (2 * shape.features + 4)
        + counts.answer_tokens * counts.likeliest * 8,
        training_bytes=4 * (2 * 4 * trained + 2 * trained),
        memory_bytes=4 * (5 * trained + shape.input_vocab_size * size) + activations + logits,
    )


def trained_weights(shape: HeadShape) -> int:
    """Number of weights of a head that training changes: all but the embedding."""
    with torch.device("meta"):
        head = Head(shape)
    return sum(weight.numel() for weight in head.parameters()) - head.embed_tokens.weight.numel()


def time_step(
    shape: HeadShape, options: TrainingOptions, counts: Counts, trials: int = _TRIALS
) -> float:
    """Seconds of training a step, an entry, on noise in the form of the texts to come.

    Args:
        shape: of the head; one with random weights is made.
        options: of the training.
        counts: of the texts; their mean lengths are taken.
        trials: steps that are run; the fastest counts.
    """
    dtype = products(options.precision, options.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        head = Head(shape).to(options.device).train()
    head.embed_tokens.requires_grad_(False)
    record = _noise(shape, counts)
    pieces = pieces_of(0, len(record.tokens), record.begin, options.row)
    vocabulary = np.arange(shape.vocab_size, dtype=np.int32)
    abreast = ABREAST[options.device]
    collate = Collator([record], vocabulary, shape.input_vocab_size, options.own_steps, abreast)
    repeats = options.batch // sum(piece.entries for piece in pieces) + 1
    batch = collate(grouped(pieces * repeats, options.batch)[0]).to(options.device)
    optimizer = HeadOptimizer(head, options)
    taken = []
    for _ in range(trials):
        started = time.perf_counter()
        train_step(head, batch, optimizer, options.learning_rate, options, dtype)
        taken.append(time.perf_counter() - started)
    return min(taken) / len(batch.tokens)


def _noise(shape: HeadShape, counts: Counts) -> Record:
    """A text of the mean length."""
    random = np.random.default_rng(0)
    records = max(counts.records, 1)
    begin = max(counts.prompt_tokens // records, 1)
    answer = max(counts.answer_tokens // records, 2)
    likeliest = (answer, counts.likeliest)
    states = torch.from_numpy(random.normal(size=(begin + answer - 1, shape.features)))
    return Record(
        id=0,
        tokens=random.integers(0, shape.input_vocab_size, begin + answer).astype(np.int32),
        begin=begin,
        states=states.bfloat16(),
        ids=random.integers(0, shape.input_vocab_size, likeliest).astype(np.int32),
        logits=random.normal(size=likeliest).astype(np.float32),
    )
