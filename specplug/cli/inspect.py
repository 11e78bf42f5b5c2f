"""``specplug inspect``: what a bundle holds."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from specplug.bundle import Bundle, Component, Quality
from specplug.cli import console, texts
from specplug.cli.console import BundlePath
from specplug.cli.skipping import described, ranges


def inspect(
    bundle: BundlePath,
    as_json: Annotated[bool, typer.Option("--json", help="The manifest, for a program.")] = False,
) -> None:
    """Check a bundle (sizes, hashes, schema) and show what is in it."""
    opened = Bundle.open(bundle)
    manifest = opened.manifest
    opened.tokenizer()  # must load too
    opened.draft_tokenizer()
    if as_json:
        texts.print_json(manifest.model_dump(mode="json"), indent=2)
        return
    components = manifest.components()
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for name in ("target", "draft")[: len(components)]:
        table.add_column(name, style="bold")
    rows = [summary_rows(component) for component in components]
    for label in rows[0]:
        table.add_row(label, *(row[label] for row in rows))
    console.stdout.print(table)
    if manifest.draft and manifest.draft.chosen:
        console.stdout.print(f"\ndraft {described(manifest.draft.chosen)}", soft_wrap=True)
    part = manifest.tokenizer
    if part:
        template = "with" if part.chat_template else "without"
        stops = ", ".join(map(str, part.stop_token_ids)) or "none"
        console.stdout.print(f"\ntokenizer {template} chat template; stop tokens {stops}")
    own = manifest.draft.own_tokenizer if manifest.draft else None
    if own:
        console.stdout.print(
            f"the draft's tokenizer is its own: {own.shared_tokens} tokens are the target's, "
            f"{own.agreement:.0%} of a text's; drafts by {own.translation}"
        )
    console.stdout.print(f"{len(manifest.all_files())} files, all as the manifest says")


_LABELS = (
    "model",
    "precision",
    "size",
    "engine",
    "context",
    "cache",
    "exact from width",
    "token trees",
    "parity with source",
    "top-1 agreement",
    "mean KL",
    "perplexity",
    "measured on",
    "source",
    "licence",
    "exported",
)


def summary_rows(component: Component) -> dict[str, str]:
    """What is shown of a component, by label."""
    return dict(zip(_LABELS, _values(component), strict=True))


def _values(component: Component) -> list[str]:
    cache, quality = component.cache, component.quality
    size = 4 if cache.dtype == "float32" else 2
    entry = 2 * cache.layers * cache.heads * cache.head_size * size
    parity = max(component.parity.model_dump().values())
    return [
        f"{component.architecture}, {component.parameters / 1e6:.1f}M parameters"
        + _layers(component),
        _precision(component),
        f"{sum(file.bytes for file in component.files) / 1e6:.1f} MB",
        f"{component.engine}, {component.dialect} dialect",
        f"{component.max_length} tokens",
        f"{entry / 1024:.0f} KiB a token",
        str(component.min_width),
        _trees(component),
        f"{parity:.1e} (fp32 graph, largest difference of logits)",
        f"{quality.top1_agreement:.1%}" if quality else "not measured",
        f"{quality.mean_kl:.4f} nats" if quality else "not measured",
        f"{quality.perplexity:.2f}, source {quality.source_perplexity:.2f}"
        if quality
        else "not measured",
        f"{quality.tokens} tokens{_text(quality)}" if quality else "nothing",
        component.provenance.source
        + (f" at {component.provenance.revision}" if component.provenance.revision else ""),
        component.provenance.licence or "not stated",
        component.provenance.date or "at an unknown date",
    ]


def _layers(component: Component) -> str:
    if component.hidden is not None:
        return f", gives what its layers {', '.join(map(str, component.hidden.layers))} read"
    if component.head is not None:
        known = f"{component.vocab_size} of {component.head.input_vocab_size}"
        block = component.head.block
        at_once = f", {block.size - block.first_guess} at a call" if block else ""
        return f", a head that guesses {known} tokens{at_once}"
    if component.layers is None:
        return ""
    layers = f"{len(component.layers)} of the target's layers ({ranges(component.layers)})"
    return f", {layers} and its cache"


def _trees(component: Component) -> str:
    if component.tree_difference is None:
        return "no"
    exact = "exact" if component.exact_trees else "not exact"
    return f"{exact} (largest difference of logits {component.tree_difference:.1e})"


def _precision(component: Component) -> str:
    parts: list[str] = [component.precision]
    if component.keep_fp32 is not None:
        parts.append(f"fp32 where {component.keep_fp32!r} matches")
    again = ", ".join(f"{n} {kind}" for kind, n in component.rounded_again.items())
    return ", ".join([*parts, f"rounded again: {again}"] if again else parts)


def _text(quality: Quality) -> str:
    return f" of the text {quality.text_sha256[:12]}…" if quality.text_sha256 else ""
