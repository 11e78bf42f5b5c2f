"""Who takes part: each system in one configuration, declared."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from specplug import Bundle

ROOT = Path(__file__).parent.parent.parent
WORKERS = ROOT / "benchmarks" / "peers"
PEERS = ROOT / ".peers"
_AT_HOME = ("specplug", "transformers")
"""Tools that run in the environment of this process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One tool in one configuration."""

    name: str
    tool: str
    precision: str
    model: Path
    """What its worker loads."""
    worker: Path
    drafter: str = "none"
    draft: Path | None = None
    plain: str | None = None
    """The system that this one is the speculation of; None: it decodes plainly."""
    slow: bool = False
    """May be given fewer prompts than the others."""

    @property
    def environment(self) -> Path:
        """The virtual environment that it runs in; benchmarks/peers/setup.sh made the peers'."""
        return Path(sys.prefix) if self.tool in _AT_HOME else PEERS / self.tool / "venv"

    @property
    def ready(self) -> bool:
        """Whether everything is there that it takes to run it."""
        needed = (self.environment, self.model, self.draft)
        return all(path is None or path.exists() for path in needed)

    def command(self, *, threads: int, stop: Sequence[int]) -> list[str]:
        """How its worker is started."""
        words = [self.environment / "bin/python", self.worker, self.model]
        words += ["--threads", threads, "--drafter", self.drafter]
        if self.draft:
            words += ["--draft", self.draft]
        if stop:
            words += ["--stop", *stop]
        return [str(word) for word in words]


def smollm(weights: Path, bundles: Iterable[Path]) -> list[System]:
    """All systems over one model without a draft model."""
    stem = weights.stem
    return [
        *_both("transformers", "fp32", PEERS / "hf" / stem, "lookup", slow=True),
        *_both("genai", "fp32", PEERS / "genai" / f"{stem}-fp32", "lookup"),
        *_both("genai", "int4", PEERS / "genai" / f"{stem}-int4", "lookup"),
        *_both("openvino", "gguf", PEERS / "openvino" / stem, "lookup"),
        *_both("llama", "gguf", weights, "lookup"),
        *(system for bundle in bundles for system in _specplug(bundle)),
    ]


def pair(target: Path, draft: Path, bundles: Iterable[Path]) -> list[System]:
    """All systems over a target and its draft model, where they take one.

    OpenVINO's documentation has no GGUF draft models, and llama-cpp-python has no draft model but
    lookup, so these two look up.
    """
    int4 = PEERS / "genai" / f"{target.stem}-int4"
    drafted = PEERS / "genai" / f"{target.stem}-int4-draft"
    small = PEERS / "hf" / draft.stem
    return [
        *_both("transformers", "fp32", PEERS / "hf" / target.stem, "draft", small, slow=True),
        *_both("genai", "int4", int4, "draft", speculative=drafted),
        *_both("openvino", "gguf", PEERS / "openvino" / target.stem, "lookup"),
        *_both("llama", "gguf", target, "lookup"),
        *(system for bundle in bundles for system in _specplug(bundle)),
    ]


def _both(
    tool: str,
    precision: str,
    model: Path,
    drafter: str,
    draft: Path | None = None,
    *,
    speculative: Path | None = None,
    slow: bool = False,
) -> list[System]:
    """A tool's plain decoding and its speculation, which may load another model."""
    worker = WORKERS / f"{tool}_worker.py"
    plain = System(
        name=f"{tool} {precision}",
        tool=tool,
        precision=precision,
        model=model,
        worker=worker,
        slow=slow,
    )
    return [
        plain,
        System(
            name=f"{plain.name} {drafter}",
            tool=tool,
            precision=precision,
            model=speculative or model,
            worker=worker,
            drafter=drafter,
            draft=draft,
            plain=plain.name,
            slow=slow,
        ),
    ]


def _specplug(bundle: Path) -> list[System]:
    return _both("specplug", Bundle.open(bundle).manifest.target.precision, bundle, "auto")
