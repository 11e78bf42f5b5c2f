"""A target as PyTorch runs it, many texts at a time: how a GPU writes and reads answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from specplug.bench.workload import Item
from specplug.distilling.answers import (
    LIKELIEST,
    AnswerOptions,
    AnswerProgress,
    known_text,
)
from specplug.distilling.shards import Record, Shards, ShardWriter
from specplug.export.source import Source
from specplug.text import Tokenizer

_READ = 1 << 15  # tokens that are read at a time, padding included
_SCORED = 1 << 13  # rows whose logits are there at a time
_SHARD = 256 << 20

Text = tuple[int, list[int], int]
"""A number, the tokens of prompt and answer, and where the answer begins."""


class TorchTarget:
    """A target on a device.

    Args:
        source: of the target.
        layers: whose inputs are recorded.
        device: such as cuda; products are bf16 there, and fp32 on the CPU.
    """

    def __init__(self, source: Source, layers: Sequence[int], device: str) -> None:
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self._model: Any = source.model(dtype, device)
        self._model.set_attn_implementation("sdpa")
        self._layers, self._device = tuple(layers), device
        self.context_limit = int(source.config.max_position_embeddings)

    @torch.no_grad()
    def write(
        self,
        prompts: Sequence[Sequence[int]],
        ends: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> list[list[int]]:
        """Continue prompts.

        Args:
            prompts: token ids each.
            ends: tokens of which each ends an answer.
            max_tokens: of an answer.
            temperature: 0: the likeliest tokens.
            seed: of the draws; answers depend on which others are written with them.

        Returns:
            The new tokens of each, the one that ended it included.
        """
        longest, pad = max(map(len, prompts)), ends[0] if ends else 0
        tokens = torch.full((len(prompts), longest), pad, dtype=torch.int64)
        seen = torch.zeros_like(tokens)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            seen[row, longest - len(prompt) :] = 1
        sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        torch.manual_seed(seed)
        made = self._model.generate(
            tokens.to(self._device),
            attention_mask=seen.to(self._device),
            max_new_tokens=min(max_tokens, self.context_limit - longest),
            eos_token_id=list(ends) or None,
            pad_token_id=pad,
            **sampling,
        )
        return [_until(answer, ends) for answer in made[:, longest:].tolist()]

    def read(self, texts: Sequence[Text]) -> Iterator[Record]:
        """What the target thinks of texts, those of like length together."""
        ordered = sorted(texts, key=lambda text: len(text[1]))
        while ordered:
            rows = max(_READ // len(ordered[-1][1]), 1)
            yield from self._read(ordered[-rows:])
            del ordered[-rows:]

    @torch.no_grad()
    def _read(self, texts: Sequence[Text]) -> Iterator[Record]:
        # Padded on the right, where causal attention needs no mask.
        tokens = torch.zeros(len(texts), max(len(text[1]) for text in texts) - 1, dtype=torch.int64)
        for row, (_, ids, _) in enumerate(texts):
            tokens[row, : len(ids) - 1] = torch.tensor(ids[:-1])
        found = self._model.base_model(
            tokens.to(self._device), output_hidden_states=True, use_cache=False
        )
        inputs = [found.hidden_states[layer] for layer in self._layers]
        states = torch.cat(inputs, -1).bfloat16().cpu()
        last = found.last_hidden_state
        scored = torch.cat(
            [last[r, begin - 1 : len(t) - 1] for r, (_, t, begin) in enumerate(texts)]
        )
        head = self._model.get_output_embeddings()
        tops = [
            head(rows).float().topk(min(LIKELIEST, head.weight.shape[0]))
            for rows in torch.split(scored, _SCORED)
        ]
        likeliest = torch.cat([top.indices for top in tops]).int().cpu().numpy()
        logits = torch.cat([top.values for top in tops]).cpu().numpy()
        start = 0
        for row, (number, text, begin) in enumerate(texts):
            answer = slice(start, start + len(text) - begin)
            start = answer.stop
            yield Record(
                number,
                np.array(text, dtype=np.int32),
                begin,
                states[row, : len(text) - 1],
                likeliest[answer],
                logits[answer],
            )


def write_answers(
    target: TorchTarget,
    tokenizer: Tokenizer,
    prompts: Sequence[Item],
    folder: Path,
    options: AnswerOptions,
    max_batch: int,
    report: Callable[[AnswerProgress], None] = lambda progress: None,
) -> Shards:
    """Answer the prompts that were not answered yet, so many at a time, and read all answers.

    What a killed run has lost is written again as it was: the batches are always the same.
    See :func:`specplug.distilling.answers.write_answers`.
    """
    done = set(Shards(folder).ids)
    known = [number for number, item in enumerate(prompts) if item.answer is not None]
    started, tokens = time.perf_counter(), 0
    with ShardWriter(folder, _SHARD) as writer:

        def add(texts: Sequence[Text]) -> None:
            nonlocal tokens
            for record in target.read(texts):
                writer.add(record)
                done.add(record.id)
                tokens += len(record.tokens) - record.begin
            seconds = time.perf_counter() - started
            report(AnswerProgress(len(done), len(prompts), tokens, writer.written, seconds))

        def room() -> bool:
            return writer.written < options.most_bytes

        for numbers in _batches([number for number in known if number not in done], max_batch):
            texts = [(number, *known_text(tokenizer, prompts[number])) for number in numbers]
            if room():
                add([text for text in texts if len(text[1]) <= target.context_limit])
        for temperature, asked in _asked(target, tokenizer, prompts, options).items():
            for batch in _batches(sorted(asked, key=lambda each: len(each[1])), max_batch):
                left = [each for each in batch if each[0] not in done]
                if not left or not room():
                    continue
                answers = target.write(
                    [prompt for _, prompt in batch],
                    tokenizer.stop_token_ids,
                    max_tokens=options.max_tokens,
                    temperature=temperature,
                    seed=options.seed + batch[0][0],
                )
                answered = zip(batch, answers, strict=True)
                texts = [(n, [*prompt, *answer], len(prompt)) for (n, prompt), answer in answered]
                add([text for text in texts if text[0] not in done])
    return Shards(folder)


def _asked(
    target: TorchTarget, tokenizer: Tokenizer, prompts: Sequence[Item], options: AnswerOptions
) -> dict[float, list[tuple[int, list[int]]]]:
    """The prompts to be answered, by temperature: their numbers and tokens."""
    asked: dict[float, list[tuple[int, list[int]]]] = {each: [] for each in options.temperatures}
    for number, item in enumerate(prompts):
        prompt = tokenizer.encode_prompt(item.prompt) if item.answer is None else []
        if prompt and len(prompt) < target.context_limit:
            turn = options.temperatures[number % len(options.temperatures)]
            asked[turn].append((number, prompt))
    return asked


def _batches(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _until(answer: list[int], ends: Sequence[int]) -> list[int]:
    """An answer up to the first token that ends it."""
    stop = next((place + 1 for place, token in enumerate(answer) if token in ends), len(answer))
    return answer[:stop]
