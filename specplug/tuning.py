"""``tuning.json``: what calls of a bundle's target cost on a machine, measured once and kept.

Without it the costs are measured before a decoder's first answer, in less than a second and at a
short context. The file is no part of what the manifest vouches for: it changes how many tokens are
drafted, never the text.
"""

from __future__ import annotations

import json
import logging
import math
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from specplug.arguments import checked
from specplug.bundle import Bundle
from specplug.controller import CallCosts, CostsByContext
from specplug.costs import measure_costs
from specplug.faults import first_fault
from specplug.machine import cores, cpu_name
from specplug.staging import check_writable, replace_file
from specplug.types import Engine

_log = logging.getLogger(__name__)

TUNING = "tuning.json"
CONTEXTS = (64, 512, 2048)
WIDTHS = (1, 16, 4, 8, 32, 2, 12, 6, 24, 3, 5, 10, 14, 20, 28)
SECONDS = 4.0
_LARGEST = 1 << 20  # bytes


class TunedCosts(BaseModel):
    """The costs of one engine on one machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    machine: str
    """Its processor, and how many cores of it the process may use."""
    engine: str
    device: str
    threads: int | None
    precision: str
    graph_sha256: str
    contexts: dict[
        Annotated[int, Field(ge=0)],
        Annotated[
            dict[Annotated[int, Field(ge=1)], Annotated[float, Field(gt=0, lt=3600)]],
            Field(min_length=1),
        ],
    ]
    """Seconds of a call by cached entries and width."""


class Tuning(BaseModel):
    """The whole of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    tuned: list[TunedCosts]


def read_costs(bundle: Bundle, engine: Engine, threads: int | None) -> CostsByContext | None:
    """What was measured of the target, run by this engine on this machine; None: nothing was.

    A file that cannot be read or is damaged counts as none, and is logged as a warning.
    """
    key = _key(bundle, engine, threads)
    for tuned in _read(bundle.path).tuned:
        if _key_of(tuned) == key:
            return {context: CallCosts(seconds) for context, seconds in tuned.contexts.items()}
    return None


@checked()
def tune(
    bundle: Bundle,
    engine: Engine,
    threads: int | None,
    *,
    contexts: Sequence[int] = CONTEXTS,
    seconds: float = SECONDS,
    report: Callable[[float], None] = lambda done: None,
) -> TunedCosts:
    """Measure the target's calls, and write them into the bundle, whole or not at all.

    Args:
        bundle: opened.
        engine: over its target.
        threads: as the engine was asked to use.
        contexts: cached entries to measure at; those beyond the model's context are left out.
        seconds: for each of them.
        report: told the share that is done.

    Raises:
        EngineError: a call failed.
        ValueError: no context fits the model.
    """
    check_writable(bundle.path)
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds {seconds}: need more than 0")
    existing = _read(bundle.path)
    limit = engine.spec.context_limit - max(WIDTHS)
    fitting = sorted({context for context in contexts if 1 <= context <= limit})
    if not fitting:
        raise ValueError(f"contexts {[*contexts]}: need some from 1 to {limit}")
    measured = {}
    for number, context in enumerate(fitting, start=1):
        measured[context] = measure_costs(engine, widths=WIDTHS, past=context, seconds=seconds)
        report(number / len(fitting))
    machine, name, device, _, precision, digest = _key(bundle, engine, threads)
    made = TunedCosts(
        machine=machine,
        engine=name,
        device=device,
        threads=threads,
        precision=precision,
        graph_sha256=digest,
        contexts=measured,
    )
    others = [tuned for tuned in existing.tuned if _key_of(tuned) != _key_of(made)]
    text = json.dumps(Tuning(tuned=[*others, made]).model_dump(mode="json"), indent=1)
    replace_file(bundle.path / TUNING, lambda part: part.write_text(text + "\n", encoding="utf-8"))
    return made


_Key = tuple[str, str, str, int | None, str, str]


def _key(bundle: Bundle, engine: Engine, threads: int | None) -> _Key:
    target = bundle.manifest.target
    digest = next(file.sha256 for file in target.files if file.path == target.graph)
    machine = f"{cpu_name()}, {cores()} cores"
    return machine, engine.spec.name, engine.spec.device, threads, target.precision, digest


def _key_of(tuned: TunedCosts) -> _Key:
    return (
        tuned.machine,
        tuned.engine,
        tuned.device,
        tuned.threads,
        tuned.precision,
        tuned.graph_sha256,
    )


def _read(folder: Path) -> Tuning:
    """What the file says; nothing, and a warning, if it cannot be read."""
    try:
        content = _content(folder / TUNING)
        return Tuning.model_validate_json(content) if content is not None else Tuning(tuned=[])
    except ValidationError as error:
        reason = f"damaged at {first_fault(error)}"
    except OSError as error:
        reason = error.strerror or str(error)
    _log.warning(
        "%s is not used (%s): costs are measured anew; run specplug tune to write it again",
        folder / TUNING,
        reason,
    )
    return Tuning(tuned=[])


def _content(path: Path) -> bytes | None:
    """The file's bytes; None: there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a file")
    if found.st_size > _LARGEST:
        raise OSError(f"larger than {_LARGEST} bytes")
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise OSError(f"larger than {_LARGEST} bytes")
    return content
