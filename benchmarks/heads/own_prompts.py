"""Have a target write prompts itself, and answer them and others, on a GPU.

A model that was trained on conversations continues the beginning of one with what its users asked
(arXiv:2406.08464), so its own prompts are like those it has learnt to answer.

    python own_prompts.py MODEL --prompts prompts.jsonl --own 20000 -o answers.jsonl.gz

Several processes share a GPU better than one: ``--part 0/4`` to ``3/4`` take a share each.
"""

from __future__ import annotations

import argparse
import gzip
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from specplug.bench.workload import Item, read_workload
from specplug.distilling.answers import answer_line
from specplug.distilling.distill import tokenizer_of
from specplug.distilling.torch_target import TorchTarget
from specplug.export.source import open_source
from specplug.text import Tokenizer

LONGEST = 256  # tokens of a prompt
TEMPERATURES = 0.0, 0.7  # of the answers
MARK = "\N{SECTION SIGN}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=Path, action="append", default=[])
    parser.add_argument("--own", type=int, default=20_000, help="of all parts together")
    parser.add_argument("--part", default="0/1")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no more answers after")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("-o", "--output", type=Path, required=True)
    given = parser.parse_args()
    started = time.monotonic()
    part, parts = map(int, given.part.split("/"))
    opened = open_source(given.model)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = tokenizer_of(opened, Path(folder))
    target = TorchTarget(opened, (), given.device)
    items = [item for file in given.prompts for item in read_workload(file)][part::parts]
    items += own_prompts(target, tokenizer, given.own // parts, given.rows, part)
    print(f"{len(items)} prompts, {time.monotonic() - started:.0f} s", flush=True)
    tokens = answers = 0
    with gzip.open(given.output, "wt", encoding="utf-8") as file:
        for temperature, batch in in_batches(items, tokenizer, given.rows, part):
            if time.monotonic() - started > given.seconds:
                break
            prompts = [tokenizer.encode_prompt(item.prompt) for item in batch]
            made = target.write(
                prompts,
                tokenizer.stop_token_ids,
                max_tokens=given.max_tokens,
                temperature=temperature,
                seed=answers * parts + part,
            )
            answers += len(made)
            tokens += sum(map(len, made))
            for item, answer in zip(batch, made, strict=True):
                file.write(answer_line(item, answer, tokenizer) + "\n")
            seconds = time.monotonic() - started
            print(f"{answers} answers, {tokens} tokens, {seconds:.0f} s", flush=True)


def own_prompts(
    target: TorchTarget, tokenizer: Tokenizer, count: int, rows: int, seed: int
) -> list[Item]:
    """What the target says where a user would."""
    before, after = tokenizer.render([{"role": "user", "content": MARK}]).split(MARK)
    begin = tokenizer.encode(before, special_tokens=False)
    end = tokenizer.encode(after, special_tokens=False)[0]
    found: dict[str, Item] = {}
    for batch in range(2 * count // rows + 1):
        if len(found) >= count:
            break
        for made in target.write(
            [begin] * rows, (end,), max_tokens=LONGEST, temperature=0.9, seed=seed + 1000 * batch
        ):
            text = tokenizer.decode(made[:-1]).strip()
            if made[-1] == end and text:
                found[text] = Item(f"own-{seed}-{batch}-{len(found)}", "own", text)
    return [*found.values()][:count]


def in_batches(
    items: list[Item], tokenizer: Tokenizer, rows: int, seed: int
) -> Iterator[tuple[float, list[Item]]]:
    """Prompts of like length, at each temperature once, the batches in any order."""
    ordered = sorted(items, key=lambda item: len(tokenizer.encode(item.prompt)))
    batches = [
        (temperature, ordered[start : start + rows])
        for temperature in TEMPERATURES
        for start in range(0, len(ordered), rows)
    ]
    random.Random(seed).shuffle(batches)
    yield from batches


if __name__ == "__main__":
    main()
