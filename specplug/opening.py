"""From a bundle and a drafter's name to the parts of a decoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from specplug.bundle import Bundle
from specplug.drafters import DRAFTERS, ModelDrafter, NgramDrafter, NoDrafter
from specplug.types import BundleError, Drafter, SpecplugError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How engines are to run; the same for target and draft."""

    threads: int | None = None
    """Worker threads; None: one a physical core."""
    share_threads: bool = False
    """One pool for all engines of the process; so runs a target beside its draft."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """ONNX Runtime execution providers, in order of preference."""
    max_batch: int = 1
    """Rows a call can have; each has a cache of its own."""
    allow_narrow: bool = False
    """Give up the width rule: calls of one token may be faster, and the text may change."""


def open_parts(
    path: Path,
    drafter: str,
    *,
    prompt_lookup_min: int = 2,
    prompt_lookup_max: int = 16,
    **engine_options: Any,
) -> dict[str, Any]:
    """The constructor arguments of a decoder over the bundle at ``path``."""
    if drafter not in DRAFTERS:
        raise ValueError(f"drafter {drafter!r} is none of {', '.join(DRAFTERS)}")
    from specplug import engines

    options = EngineOptions(**engine_options)
    lookup = {"prompt_lookup_min": prompt_lookup_min, "prompt_lookup_max": prompt_lookup_max}
    bundle = Bundle.open(path)
    draft = bundle.manifest.draft
    if drafter == "draft":
        if draft is None:
            raise BundleError(
                f"{path} holds no draft model: export it with --draft or --self-draft, "
                "or use --drafter ngram"
            )
        options = replace(options, share_threads=True)
    target = engines.load(bundle.path, bundle.manifest.target, options)
    made: Drafter = NgramDrafter(**lookup) if drafter == "ngram" else NoDrafter()
    if draft is not None and drafter == "draft":
        try:
            made = ModelDrafter(engines.load(bundle.path, draft, options))
        except SpecplugError:
            target.close()
            raise
    return {"target": target, "drafter": made, "tokenizer": bundle.tokenizer()}
