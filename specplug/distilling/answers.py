"""The target writes its own answers, and what it thinks at each of their tokens is kept."""

from __future__ import annotations

import gzip
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from specplug.arguments import check_types
from specplug.batching import BatchDecoder
from specplug.bench.workload import Item
from specplug.distilling.shards import Record, Shards, ShardWriter
from specplug.feeding import PREFILL_WIDTH, feed
from specplug.generation import Generation
from specplug.sampling import SamplingParams
from specplug.staging import replace_file
from specplug.text import Tokenizer
from specplug.types import (
    HIDDEN_STATES,
    ContextLimitError,
    Drafter,
    Float32Array,
    Int32Array,
    Int64Array,
    Request,
    Scores,
    SpecplugError,
)

LIKELIEST = 32
"""Tokens whose logits are kept of each position: nearly all of the target's law is theirs."""


@dataclass(frozen=True, slots=True)
class AnswerOptions:
    """How the target answers."""

    max_tokens: int = 256
    """Of an answer."""
    temperatures: tuple[float, ...] = (0.0, 0.7)
    """Of the prompts in turn."""
    seed: int = 0
    most_bytes: int = 20 << 30
    """On disk, nearly; no more prompts are begun once the records have as many."""

    def __post_init__(self) -> None:
        check_types(self)
        if self.max_tokens < 4:
            raise SpecplugError(f"max_tokens is {self.max_tokens}: give 4 or more, to learn from")
        if not self.temperatures or not all(0 <= each < math.inf for each in self.temperatures):
            raise SpecplugError(f"temperatures are {self.temperatures}: give some, of 0 or more")


@dataclass(frozen=True, slots=True)
class AnswerProgress:
    """How far it is."""

    prompts: int
    """Answered, in earlier runs included."""
    of: int
    tokens: int
    """Of this run's answers so far, finished or not."""
    written: int
    """Bytes on disk."""
    seconds: float
    """Of this run."""


def write_answers(
    decoder: BatchDecoder,
    prompts: Sequence[Item],
    folder: Path,
    options: AnswerOptions,
    report: Callable[[AnswerProgress], None] = lambda progress: None,
) -> Shards:
    """Answer the prompts that were not answered yet.

    An answer is the same whichever others are written beside it, so what a killed run has lost is
    written again as it was. Prompts whose answer is known are only read.

    Args:
        decoder: over a target that gives hidden states, with a :class:`Recorder` as drafter and
            no prefix cache.
        prompts: the user's messages; an item's index is its record's id.
        folder: of the records.
        options: see there.
        report: called after every round.

    Returns:
        All records. Prompts for which the target has no room have none.

    Raises:
        SpecplugError: the decoder is another one, or an answer failed.
    """
    recorder = decoder.drafter
    if not isinstance(recorder, Recorder) or decoder.prefixes.most_bytes:
        raise SpecplugError("answers are recorded by a Recorder, and without a prefix cache")
    done = set(Shards(folder).ids)
    left = [number for number in range(len(prompts)) if number not in done]
    asked = iter([number for number in left if prompts[number].answer is None])
    numbers: dict[Generation, int] = {}
    answered, tokens, started = len(done), 0, time.perf_counter()
    with ShardWriter(folder) as writer:

        def add(number: int, recording: Recording) -> None:
            nonlocal answered
            writer.add(recording.record(number))
            answered += 1

        def tell() -> None:
            seconds = time.perf_counter() - started
            report(AnswerProgress(answered, len(prompts), tokens, writer.written, seconds))

        for number in left:
            if prompts[number].answer is None or writer.written >= options.most_bytes:
                continue
            recording = _read(decoder, prompts[number])
            if recording is not None:
                add(number, recording)
                tokens += len(recording.tokens)
            tell()
        while True:
            room = decoder.max_batch + 1 - len(numbers)
            for number in islice(asked, room if writer.written < options.most_bytes else 0):
                generation = _submit(decoder, prompts[number].prompt, number, options)
                if generation is not None:
                    numbers[generation] = number
            if not numbers:
                break
            for generation, made in decoder.step():
                tokens += len(made)
                if generation.finish_reason is None:
                    continue
                if generation.error is not None:
                    raise generation.error
                add(numbers.pop(generation), recorder.finished.pop(id(generation.request)))
            tell()
    return Shards(folder)


def _submit(
    decoder: BatchDecoder, prompt: str, number: int, options: AnswerOptions
) -> Generation | None:
    temperature = options.temperatures[number % len(options.temperatures)]
    sampling = SamplingParams(temperature=temperature, seed=options.seed + number)
    try:
        return decoder.submit(
            decoder.encode(prompt), max_tokens=options.max_tokens, sampling=sampling
        )
    except ContextLimitError:
        return None


def save_answers(
    records: Shards, prompts: Sequence[Item], tokenizer: Tokenizer, path: Path
) -> None:
    """Write the answers as text, for another time: a file that :func:`write_answers` only reads.

    Args:
        records: of these prompts.
        prompts: the items that were answered.
        tokenizer: the target's.
        path: of the file, JSON lines; compressed if its name ends in ``.gz``.
    """
    lines = [
        answer_line(prompts[record.id], record.tokens[record.begin :].tolist(), tokenizer)
        for record in records.without_states()
    ]
    content = "".join(f"{line}\n" for line in lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)
    replace_file(path, lambda part: part.write_bytes(content))


def answer_line(item: Item, answer: Sequence[int], tokenizer: Tokenizer) -> str:
    """A prompt and the tokens of its answer, as :func:`known_text` reads them again."""
    ended = answer[-1] in tokenizer.stop_token_ids
    line = {"id": item.id, "category": item.category, "prompt": item.prompt}
    line |= {"answer": tokenizer.decode(answer[:-1] if ended else answer)}
    return json.dumps(line if ended else line | {"finish_reason": "length"})


def known_text(tokenizer: Tokenizer, item: Item) -> tuple[list[int], int]:
    """The tokens of a prompt with its known answer, and where that begins."""
    prompt = tokenizer.encode_prompt(item.prompt)
    answer = tokenizer.encode(item.answer or "", special_tokens=False)
    ends = tokenizer.stop_token_ids[:1] if item.ended else ()
    return [*prompt, *answer, *ends], len(prompt)


def _read(decoder: BatchDecoder, item: Item) -> Recording | None:
    """Run the target over a known answer."""
    target, tokenizer = decoder.target, decoder.tokenizer
    assert tokenizer is not None
    text, begin = known_text(tokenizer, item)
    tokens = np.array(text, dtype=np.int64)
    recording = Recording(begin, tokens=tokens)
    last = len(tokens) - 1
    if last > target.spec.context_limit:
        return None
    for past in range(0, last, PREFILL_WIDTH):
        piece = tokens[past : min(past + PREFILL_WIDTH, last)]
        scored = min(len(piece), max(past + len(piece) - recording.begin + 1, 0))
        scores = feed(target, piece.tolist(), past=past, scored=max(scored, 1))
        recording.add(scores, len(piece), scored)
    return recording


@dataclass(slots=True)
class Recording:
    """What was seen of one generation."""

    begin: int
    states: list[torch.Tensor] = field(default_factory=list)
    ids: list[Int32Array] = field(default_factory=list)
    logits: list[Float32Array] = field(default_factory=list)
    tokens: Int64Array = field(default_factory=lambda: np.empty(0, dtype=np.int64))

    def add(self, scores: Scores, width: int, scored: int) -> None:
        """The hidden states of a call's tokens, and the first ``scored`` of its scores."""
        states = scores.hidden(HIDDEN_STATES)[0, :width]
        self.states.append(torch.from_numpy(states).to(torch.bfloat16))
        for logits in scores.logits()[0, :scored]:
            count = min(LIKELIEST, len(logits))
            chosen = np.argpartition(logits, -count)[-count:]
            ids: Int32Array = chosen[np.lexsort((chosen, -logits[chosen]))].astype(np.int32)
            self.ids.append(ids)
            self.logits.append(logits[ids])

    def record(self, number: int) -> Record:
        """It, complete."""
        states = torch.cat(self.states)
        read = len(self.tokens) - 1
        if len(states) != read or len(self.ids) != len(self.tokens) - self.begin:
            raise SpecplugError(f"of {read} tokens the hidden states of {len(states)} were seen")
        return Record(
            number,
            self.tokens.astype(np.int32),
            self.begin,
            states,
            np.stack(self.ids),
            np.stack(self.logits),
        )


class Recorder(Drafter):
    """Proposes nothing, and keeps what the target thinks."""

    name = "recorder"

    def __init__(self, finished: dict[int, Recording] | None = None) -> None:
        self.finished: dict[int, Recording] = finished if finished is not None else {}
        """By the identity of the request; the taker removes them."""
        self._recording = Recording(0)

    def reset(self, request: Request) -> None:
        """Begin anew."""
        self._recording = Recording(request.prompt_tokens)

    def observe(self, past: int, tokens: Sequence[int], scores: Scores) -> None:
        """Keep the hidden states, and of the last token of a call what may follow it."""
        answering = past + len(tokens) >= self._recording.begin
        self._recording.add(scores, len(tokens), int(answering))

    def finish(self, request: Request, tokens: Int64Array) -> None:
        """Hand it over."""
        self._recording.tokens = tokens.copy()
        self.finished[id(request)] = self._recording

    def fork(self) -> Recorder:
        """For another sequence."""
        return Recorder(self.finished)
