"""What is to be exported, opened: its sources, paired, and what each of them becomes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from specplug.checkpoint_path import check_gguf
from specplug.export.pairing import OtherTokens, pair
from specplug.export.precision import Precision
from specplug.export.quality_text import sample_text
from specplug.export.request import Report, Request
from specplug.export.self_draft import with_layers
from specplug.export.source import Source, open_source
from specplug.export.speculators import HeadSource, is_head, open_head
from specplug.types import ExportError

Open = Callable[[Path], Source]


@dataclass(frozen=True, slots=True)
class Part:
    """The components that come of one source."""

    source: Source
    components: dict[str, Precision]
    """``"target"`` or ``"draft"``, and what each is rounded to."""
    layers: tuple[int, ...] | None = None
    """If the draft is the target itself: the target's layers that it has."""
    hidden: tuple[int, ...] = ()
    """Of the target's part: the layers whose inputs its graph gives as hidden states."""
    head: HeadSource | None = None
    """Of the target's part: what reads them."""
    other_tokens: OtherTokens | None = None
    """Of a draft's part: its tokenizer, if it is not the target's."""


def open_parts(
    request: Request, *, report: Report, note: Report, opening: Open = open_source
) -> list[Part]:
    """Open the sources; the target's comes first.

    Args:
        request: what the user asked for.
        report: told which source is being read.
        note: told why a precision was picked, and what a source holds that is not used.
        opening: what a source is opened with.

    Raises:
        ExportError: a source cannot be read, two cannot be paired, or options exclude one another.
    """
    request.check_options()
    (precision, reason), own = request.choice, request.own_draft
    if reason is not None:
        note(f"precision: {reason}")

    def opened(path: str | Path) -> Source:
        report(f"reading {Path(path).name}")
        source = opening(Path(path))
        if source.ignored:
            note(
                f"{source.path.name}: {len(source.ignored)} tensors that are not the model's, or "
                "quantize its activations or its cache, are left out: "
                f"{', '.join(source.ignored[:3])}"
            )
        return source

    target = opened(request.source)
    if own and not own.layers:
        layers = tuple(range(int(target.config.num_hidden_layers)))
        return [Part(target, {"target": precision, "draft": own.precision or precision}, layers)]
    head = None
    if request.draft is not None and is_head(Path(request.draft)):
        report(f"reading {Path(request.draft).name}")
        head = open_head(Path(request.draft), target)
    hidden = head.head.shape.layers if head else tuple(request.hidden)
    count = int(target.config.num_hidden_layers)
    if not all(0 <= layer < count for layer in hidden):
        raise ExportError(f"hidden states of layers {hidden}: the target has 0 to {count - 1}")
    parts = [Part(target, {"target": precision}, hidden=hidden, head=head)]
    if own and own.layers:
        parts.append(
            Part(
                with_layers(target, own.layers),
                {"draft": own.precision or precision},
                own.layers,
            )
        )
    if request.draft is not None and head is None:
        if precision == "gguf":
            check_gguf(Path(request.draft))
        draft = opened(request.draft)
        sizes = target.config.vocab_size, draft.config.vocab_size
        text = sample_text(Path(request.quality_text) if request.quality_text else None)
        other = pair(target.tokenizer, draft.tokenizer, *sizes, text)
        if other is not None:
            note(other.told)
        parts.append(Part(draft, {"draft": precision}, other_tokens=other))
    return parts
