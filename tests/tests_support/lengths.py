"""Bundles whose manifest says other lengths and shapes than its target, or its graphs, have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from specplug.bundle import MANIFEST
from specplug.export import export_bundle
from tests_support.heads import WRITTEN
from tests_support.tiny import byte_tokenizer, write_checkpoint

PROMPT = list(b"the quick brown fox ")
DRAFTERS = {"draft": "draft", "self": "self", "layers": "self", "head": "head"} | {
    "universal": "universal"
}
"""Kinds of drafts, and the drafter that uses them."""

LENGTHS = [
    (target, draft, width)
    for target, draft in [(40, 1000), (40, 41), (40, 40), (60, 40), (60, 21), (1000, 16)]
    for width in (1, 16)
]
"""max_length of a target and its draft, and the draft's min_width."""

SHAPES: list[tuple[tuple[str, ...], Any]] = [
    (("cache", "layers"), 1),
    (("cache", "layers"), 3),
    (("cache", "layers"), 1 << 31),
    (("cache", "heads"), 1),
    (("cache", "heads"), 4),
    (("cache", "heads"), 1 << 17),
    (("cache", "head_size"), 1),
    (("cache", "head_size"), 64),
    (("cache", "dtype"), "float16"),
    (("cache", "dtype"), "bfloat16"),
    (("vocab_size",), 1),
    (("vocab_size",), 100),
    (("vocab_size",), 100_000),
    (("max_length",), 1),
    (("max_length",), 2),
    (("max_length",), 1 << 31),
    (("min_width",), 1),
    (("min_width",), 16),
    (("dialect",), "standard"),
    (("dialect",), "ort"),
]
"""Fields of a component, and values that its graph may not have."""


def export_pairs(target: Path, folder: Path) -> None:
    """A bundle with each kind of draft, but for heads."""
    like = write_checkpoint(folder / "like", seed=3, hidden_size=32)
    other = write_checkpoint(
        folder / "other", seed=3, hidden_size=32, tokenizer=byte_tokenizer(("<|extra|>",))
    )
    for dialect in ("ort", "standard"):
        options: Mapping[str, Mapping[str, Any]] = {
            "draft": {"draft": like},
            "self": {"self_draft": "int4"},
            "layers": {"self_draft": "layers=1"},
            "universal": {"draft": other},
            "head": {"draft": WRITTEN / "llama"},
        }
        for kind, given in options.items():
            if kind != "head":
                to = folder / f"{kind}-{dialect}"
                export_bundle(target, to, precision="fp32", dialect=dialect, **given)


def changed(bundle: Path, to: Path, **changes: Mapping[tuple[str, ...], Any]) -> Path:
    """A copy of a bundle with other values in its manifest, by component."""
    shutil.copytree(bundle, to)
    manifest = json.loads((to / MANIFEST).read_text())
    for component, values in changes.items():
        for path, value in values.items():
            at = manifest[component]
            for key in path[:-1]:
                at = at[key]
            at[path[-1]] = value
    (to / MANIFEST).write_text(json.dumps(manifest))
    return to
