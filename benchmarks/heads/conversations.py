"""Have a target write whole conversations, a question and its answer, and keep what it thinks.

A model that was trained on conversations continues the beginning of one with what its users asked
(arXiv:2406.08464), so its own questions are like those it has learnt to answer.

    python conversations.py MODEL --seconds 1500 -o conversations.jsonl [--records FOLDER]

Several processes use a machine better than one with as many threads, on a GPU as well; give each a
part (``--part 0/2 --threads 1``), an output and a folder of its own. The text is what
``specplug distill --prompts`` reads; the records are the answers of a distillation's work folder,
with the hidden states, so that they need not be read again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from specplug.bench.workload import Item
from specplug.distilling.answers import LIKELIEST, answer_line
from specplug.distilling.distill import default_layers, tokenizer_of
from specplug.distilling.shards import Record, ShardWriter
from specplug.export.source import open_source
from specplug.text import Tokenizer

LONGEST_QUESTION, LONGEST_ANSWER = 140, 256  # tokens
SHORTEST_QUESTION, SHORTEST_ANSWER = 3, 24  # of one that is cut off
TEMPERATURES = 0.0, 0.7  # of the answers, in turn; questions are drawn at 1
LEFT = 1 / 6  # of the rows: with fewer left, a wave ends
CROWDED = 0.85  # of the rows: with fewer of them in use, the others are given up
MARK = "\N{SECTION SIGN}"


@dataclass(frozen=True, slots=True)
class Template:
    """The tokens around a question."""

    begin: list[int]
    turn: list[int]
    """From the token that ends the question to those that begin the answer."""
    ends: frozenset[int]
    """Of an answer."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Template:
        """A tokenizer's."""
        texts = tokenizer.render([{"role": "user", "content": MARK}]).split(MARK)
        begin, turn = (tokenizer.encode(text, special_tokens=False) for text in texts)
        return cls(begin, turn, frozenset(tokenizer.stop_token_ids))


@dataclass(slots=True)
class Conversation:
    """One that is being written."""

    template: Template
    temperature: float
    """Of its answer."""
    tokens: list[int]
    forced: list[int] = field(default_factory=list)
    """Tokens that come next, whatever the target says."""
    answer: int | None = None
    """Where the answer begins, once it is the answer's turn."""
    states: list[torch.Tensor] = field(default_factory=list)
    likeliest: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """Whether the answer has ended by itself."""
        said = self.tokens[self.answer :] if self.answer is not None else []
        return bool(said) and said[-1] in self.template.ends

    def take(self, token: int) -> bool:
        """Add the next token; whether there is more to say."""
        asked = len(self.tokens) - len(self.template.begin)
        self.tokens.append(self.forced.pop(0) if self.forced else token)
        if self.answer is not None:
            return not self.whole and len(self.tokens) - self.answer < LONGEST_ANSWER
        return self._asking(token, asked)

    def _asking(self, token: int, asked: int) -> bool:
        if token != self.template.turn[0]:
            return asked < LONGEST_QUESTION
        self.forced = self.template.turn[1:]
        self.answer = len(self.tokens) + len(self.forced)
        return asked >= SHORTEST_QUESTION

    def record(self, number: int) -> Record:
        """What was said and thought, from the answer on."""
        assert self.answer is not None
        told = self.likeliest[self.answer - len(self.template.begin) :]
        return Record(
            number,
            np.array(self.tokens, dtype=np.int32),
            self.answer,
            torch.cat(self.states),
            np.stack([ids for ids, _ in told]),
            np.stack([logits for _, logits in told]),
        )

    def line(self, number: int, tokenizer: Tokenizer) -> str | None:
        """The text, as a workload has it; None if the question is of marks that are no text."""
        begin, turn, answer = self.template.begin, self.template.turn, self.answer
        question = tokenizer.decode(self.tokens[len(begin) : (answer or 0) - len(turn)])
        item = Item(f"own-{number}", "own", question)
        return answer_line(item, self.tokens[answer:], tokenizer) if question else None


class Reserved(DynamicLayer):
    """A layer's cache with room for all that will come; one that grows is copied at each token."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room

    def lazy_initialization(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make the room."""
        self.dtype, self.device = keys.dtype, keys.device
        shape = *keys.shape[:2], self._room, keys.shape[3]
        self._whole = {"keys": keys.new_empty(shape), "values": values.new_empty(shape)}
        self._show(0)
        self.is_initialized = True

    def _show(self, length: int) -> None:
        for name, whole in self._whole.items():
            setattr(self, name, whole[:, :, :length])

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add keys and values; all so far."""
        if not self.is_initialized:
            self.lazy_initialization(keys, values)
        begin = self.keys.shape[2]
        end = begin + keys.shape[2]
        self._whole["keys"][:, :, begin:end] = keys
        self._whole["values"][:, :, begin:end] = values
        self._show(end)
        return self.keys, self.values

    def keep(self, rows: torch.Tensor) -> None:
        """Give up all other rows."""
        length = self.keys.shape[2]
        for name, whole in self._whole.items():
            self._whole[name] = whole.new_empty(len(rows), *whole.shape[1:])
            self._whole[name][:, :, :length] = whole[rows, :, :length]
        self._show(length)


@torch.no_grad()
def converse(
    model: Any, layers: Sequence[int], template: Template, rows: int, seed: int
) -> Iterator[Conversation]:
    """One wave of conversations.

    Args:
        model: the target in transformers.
        layers: whose inputs are kept.
        template: the target's.
        rows: conversations begun; questions that do not end, and answers that have hardly begun
            when few others are left, are given up.
        seed: of the draws.
    """
    device = model.device
    generator = torch.Generator(device).manual_seed(seed)
    room = len(template.begin) + LONGEST_QUESTION + len(template.turn) + LONGEST_ANSWER + 1
    cache = DynamicCache()
    cache.layers = [Reserved(room) for _ in range(model.config.num_hidden_layers)]
    talks: list[Conversation | None] = [
        Conversation(template, TEMPERATURES[row % len(TEMPERATURES)], [*template.begin])
        for row in range(rows)
    ]
    tokens = torch.tensor([template.begin] * rows, device=device)
    positions = torch.arange(len(template.begin), device=device).expand(rows, -1)
    while True:  # a token of each
        found = model.base_model(
            tokens,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        states = torch.cat([found.hidden_states[layer] for layer in layers], -1).bfloat16().cpu()
        logits = model.get_output_embeddings()(found.last_hidden_state[:, -1].contiguous())
        top = logits.topk(min(LIKELIEST, logits.shape[-1]))
        chosen = _chosen(top.values.float(), talks, generator)
        ids, values = top.indices.int().cpu().numpy(), top.values.float().cpu().numpy()
        for row, talk in enumerate(talks):
            if talk is None:
                continue
            talk.states.append(states[row].clone())
            talk.likeliest.append((ids[row], values[row]))
            if not talk.take(int(ids[row, chosen[row]])):
                if talk.answer is not None and len(talk.tokens) > talk.answer:
                    yield talk
                talks[row] = None
        left = [row for row, talk in enumerate(talks) if talk is not None]
        if len(left) <= LEFT * rows:
            break
        positions = positions[:, -1:] + 1
        if len(left) < CROWDED * len(talks):
            kept = torch.tensor(left, device=device)
            positions, talks = positions[kept], [talks[row] for row in left]
            for layer in cache.layers:
                layer.keep(kept)
        tokens = torch.tensor([[talk.tokens[-1] if talk else 0] for talk in talks], device=device)
    for talk in talks:
        if talk and talk.answer and len(talk.tokens) - talk.answer >= SHORTEST_ANSWER:
            yield talk


def _chosen(
    logits: torch.Tensor, talks: Sequence[Conversation | None], generator: torch.Generator
) -> list[int]:
    """Of each row's likeliest tokens, the place of the one that is said."""
    temperatures = torch.tensor(
        [1.0 if talk is None or talk.answer is None else talk.temperature for talk in talks],
        device=logits.device,
    )
    shares = (logits / temperatures.clamp_min(1e-3)[:, None]).softmax(-1)
    drawn = torch.multinomial(shares, 1, generator=generator)[:, 0]
    return drawn.masked_fill(temperatures == 0, 0).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=int, default=160)
    parser.add_argument("--seconds", type=float, default=1500, help="begin no more waves after")
    parser.add_argument("--waves", type=int, default=1_000_000, help="at most so many")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--records", type=Path, help="a folder for hidden states and scores")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    part, parts = map(int, given.part.split("/"))
    opened = open_source(given.model)
    layers = default_layers(int(opened.config.num_hidden_layers))
    model = opened.model(torch.bfloat16, given.device)
    model.set_attn_implementation("sdpa")
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(opened, Path(folder))
        template, started, made, tokens = Template.of(tokenizer), time.monotonic(), 0, 0
        records = given.records or Path(folder) / "records"
        with ShardWriter(records) as writer, given.output.open("w", encoding="utf-8") as file:
            for wave in range(given.waves):
                if time.monotonic() - started > given.seconds:
                    break
                for talk in converse(model, layers, template, given.rows, wave * parts + part):
                    number = (1 + part) * 1_000_000 + made  # no number of a file of prompts
                    line = talk.line(number, tokenizer)
                    if line is None:
                        continue
                    if given.records:
                        writer.add(talk.record(number))
                    file.write(line + "\n")
                    made, tokens = made + 1, tokens + len(talk.tokens) - (talk.answer or 0)
                seconds = time.monotonic() - started
                print(f"{made} answers, {tokens} tokens, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
