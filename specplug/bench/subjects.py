"""What is compared: engines over the components of bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from specplug import engines
from specplug.bundle import Bundle
from specplug.opening import EngineOptions
from specplug.types import Engine, EngineError, ExportError, MissingExtraError


@dataclass(frozen=True, slots=True)
class Subject:
    """One engine over one bundle's target."""

    engine: str
    dialect: str
    """Of the graph; empty for engines that run none."""
    precision: str
    bundle: Bundle
    options: EngineOptions

    @property
    def label(self) -> str:
        """As tables and plots call it."""
        return " ".join(filter(None, (self.engine, self.dialect, self.precision)))

    def open(self) -> Engine:
        """Load it. Raises what :func:`specplug.engines.load` raises."""
        return engines.load(self.bundle.path, self.bundle.manifest.target, self.options)


@dataclass(frozen=True, slots=True)
class Missing:
    """What was asked for and cannot be measured here."""

    label: str
    reason: str


def find_subjects(
    bundles: Sequence[Bundle],
    engine_names: Sequence[str],
    precisions: Sequence[str],
    options: EngineOptions,
) -> list[Subject]:
    """Every engine over every bundle; the same thing by two ways counts once.

    Args:
        bundles: opened.
        engine_names: empty: what each bundle was exported for.
        precisions: empty: those of the bundles.
        options: of all.

    Raises:
        ValueError: nothing is left.
    """
    found: dict[str, Subject] = {}
    for bundle in bundles:
        target = bundle.manifest.target
        if precisions and target.precision not in precisions:
            continue
        for name in engine_names or [target.engine]:
            runs_a_graph = name in ("onnxruntime", "tensorrt")
            subject = Subject(
                engine=name,
                dialect=target.dialect if runs_a_graph else "",
                precision=target.precision,
                bundle=bundle,
                options=replace(
                    options, engine=name, share_threads=bundle.manifest.draft is not None
                ),
            )
            found.setdefault(subject.label, subject)
    if not found:
        raise ValueError("no bundle has any of the precisions asked for")
    return [*found.values()]


def open_subjects(
    subjects: Sequence[Subject],
) -> tuple[dict[Subject, Engine], list[Missing]]:
    """Load them all, those that take one row only with one; the others with the reason why not."""
    opened: dict[Subject, Engine] = {}
    missing = []
    for subject in subjects:
        try:
            try:
                opened[subject] = subject.open()
            except EngineError:
                if subject.options.max_batch == 1:
                    raise
                single = replace(subject, options=replace(subject.options, max_batch=1))
                opened[single] = single.open()
        except (EngineError, ExportError, MissingExtraError) as error:
            missing.append(Missing(subject.label, str(error)))
    return opened, missing


def export_missing(
    bundle: Bundle, precisions: Sequence[str], sources: Sequence[Path], folder: Path
) -> list[Bundle]:
    """The bundle's target in other precisions, exported from its source.

    Raises:
        EngineError: the source is not found.
        ExportError: it cannot be exported so.
        MissingExtraError: the export extra is not installed.
    """
    from specplug.engines.sources import find_source
    from specplug.export import export_bundle

    target = bundle.manifest.target
    source = find_source(target.provenance, sources)
    made = []
    for precision in precisions:
        path = folder / f"{precision}.bundle"
        export_bundle(source, path, precision=precision, dialect=target.dialect)  # type: ignore[arg-type]
        made.append(Bundle.open(path))
    return made
