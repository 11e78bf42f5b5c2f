"""Write the prompts that a draft head is trained on: `python prompts.py > prompts.jsonl`.

The target model answers each of them, and the head learns from those answers. Templates and lists
are in `material/*.txt`, all of our own writing:

- `[name]` begins a list; every other line is an entry of it, `\\n` a line break in the entry.
- `<name>` stands for an entry of the list `name`, the same one each time within a prompt;
  `<name2>` to `<name9>` stand for other entries of it. Entries may hold slots themselves.
- `a=2..9 b=a*3 | text with <a> and <b>` draws whole numbers and derives others before the text.

`[chat]`, `[maths]` and so on, the kinds of `SHARES`, are the lists that prompts begin from.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from pathlib import Path

MATERIAL = Path(__file__).parent / "material"
SEED = 10
SHARES = {  # prompts of each kind
    "chat": 1800,
    "maths": 1500,
    "translation": 600,
    "qa": 600,
    "code": 600,
    "summary": 480,
    "rewriting": 420,
}
MOST_WORDS = 300
ROUNDS = 400  # through a kind's templates, before it counts as too poor for its share

SLOT = re.compile(r"<([a-z_]+)([2-9]?)>")
NUMBERS = re.compile(r"((?:[a-z]=\S+ )+)\| ")
RANGE = re.compile(r"(\d+)\.\.(\d+)(?::(\d+))?")


def read_material(folder: Path = MATERIAL) -> dict[str, list[str]]:
    """Every list of the folder's files by its name.

    Raises ValueError for an entry ahead of any list and for a list or an entry that comes twice.
    """
    lists: dict[str, list[str]] = {}
    for path in sorted(folder.glob("*.txt")):
        entries: list[str] | None = None
        for line in path.read_text(encoding="utf-8").splitlines():
            if heading := re.fullmatch(r"\[([a-z_]+)\]", line):
                if heading[1] in lists:
                    raise ValueError(f"{path.name}: list {heading[1]!r} comes twice: join the two")
                entries = lists[heading[1]] = []
            elif line:
                if entries is None:
                    raise ValueError(f"{path.name}: {line!r} is in no list: put a [name] above it")
                if line in entries:
                    raise ValueError(f"{path.name}: {line!r} comes twice in its list: drop one")
                entries.append(line)
    return lists


class Filling:
    """One prompt's choices: what each slot stands for."""

    def __init__(self, lists: dict[str, list[str]], rng: random.Random):
        self.lists = lists
        self.rng = rng
        self.values: dict[str, int] = {}
        self.chosen: dict[tuple[str, str], str] = {}
        self.taken: dict[str, list[str]] = {}

    def text(self, template: str) -> str:
        """The template with its slots filled. Raises KeyError for a slot without a list."""
        if numbers := NUMBERS.match(template):
            for assignment in numbers[1].split():
                name, value = assignment.split("=", 1)
                self.values[name] = self.number(value)
            template = template[numbers.end() :]
        return SLOT.sub(self.slot, template).replace("\\n", "\n")

    def number(self, value: str) -> int:
        if bounds := RANGE.fullmatch(value):
            return self.rng.randrange(int(bounds[1]), int(bounds[2]) + 1, int(bounds[3] or 1))
        return int(eval(value, {"__builtins__": {}}, self.values))  # arithmetic of our own material

    def slot(self, match: re.Match[str]) -> str:
        name, which = match[1], match[2]
        if not which and name in self.values:
            return str(self.values[name])
        if (name, which) not in self.chosen:
            taken = self.taken.setdefault(name, [])
            entry = self.rng.choice([entry for entry in self.lists[name] if entry not in taken])
            taken.append(entry)
            self.chosen[name, which] = self.text(entry)
        return self.chosen[name, which]


def folded(text: str) -> str:
    """The text without differences of case and space, by which prompts are told apart."""
    return " ".join(text.casefold().split())


def prompts_of(kind: str, lists: dict[str, list[str]], rng: random.Random) -> Iterator[str]:
    """Distinct prompts of a kind, its templates taking turns; ends when no new ones come."""
    seen: set[str] = set()
    for _ in range(ROUNDS):
        templates = list(lists[kind])
        rng.shuffle(templates)
        for template in templates:
            prompt = Filling(lists, rng).text(template)
            prompt = prompt[:1].upper() + prompt[1:]
            if folded(prompt) not in seen and len(prompt.split()) <= MOST_WORDS:
                seen.add(folded(prompt))
                yield prompt


def prompts(seed: int = SEED) -> list[dict[str, str]]:
    """All prompts, each {"id", "category", "prompt"}, shuffled: any beginning has the mixture.

    Raises ValueError where a kind's material cannot fill its share.
    """
    lists = read_material()
    rows = []
    for kind, share in SHARES.items():
        rng = random.Random(f"{seed} {kind}")  # one kind's material does not move another's prompts
        texts = [text for text, _ in zip(prompts_of(kind, lists, rng), range(share), strict=False)]
        if len(texts) < share:
            raise ValueError(f"{kind}: {len(texts)} distinct prompts of {share}: add templates")
        rows += [
            {"id": f"{kind}-{number:04}", "category": kind, "prompt": text}
            for number, text in enumerate(texts, 1)
        ]
    random.Random(seed).shuffle(rows)
    return rows


def main() -> None:
    sys.stdout.reconfigure(encoding="utf-8", newline="\n")  # type: ignore[union-attr]
    for row in prompts():
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
