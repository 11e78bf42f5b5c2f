"""What a distillation will take, from a few seconds of each of its parts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from specplug.bench.workload import Item
from specplug.distilling.answers import LIKELIEST, AnswerProgress
from specplug.distilling.distill import (
    ANSWERS,
    DistillOptions,
    Told,
    answer,
    open_start,
    shape_for,
    tokenizer_of,
)
from specplug.distilling.planning import Counts, Plan, plan, time_step
from specplug.distilling.shards import Shards
from specplug.distilling.training import products
from specplug.export.source import Source, open_source

_SECONDS = 20.0  # of answering


class _EnoughError(Exception):
    """It was answered for long enough."""


def forecast(source: Path, prompts: Sequence[Item], options: DistillOptions) -> Plan:
    """Answer some prompts and train a few steps, leaving nothing behind, and add up.

    Args:
        source: as in :func:`specplug.distilling.distill.distill`, like the others.
        prompts: see there.
        options: see there.
    """
    products(options.training.precision, options.training.device)
    opened = open_source(source)
    shape = shape_for(opened, open_start(opened, options), options)
    with tempfile.TemporaryDirectory(prefix="specplug-distill-") as folder:
        counts, speed = _trial(source, opened, shape.layers, prompts, options, Path(folder))
    return plan(
        counts,
        shape,
        options.training,
        answer_speed=speed,
        entry_seconds=time_step(shape, options.training, counts),
    )


def _trial(
    source: Path,
    opened: Source,
    layers: tuple[int, ...],
    prompts: Sequence[Item],
    options: DistillOptions,
    work: Path,
) -> tuple[Counts, float]:
    """How much text all prompts will give, and the answers' tokens a second."""
    started, speed = time.perf_counter(), 1.0

    def stop(progress: AnswerProgress) -> None:
        nonlocal speed
        speed = progress.tokens / max(progress.seconds, 1e-9)
        if progress.prompts and time.perf_counter() - started > _SECONDS:
            raise _EnoughError

    with suppress(_EnoughError):
        tokenizer, told = tokenizer_of(opened, work), Told(answers=stop)
        answer(source, opened, layers, tokenizer, prompts, work, options, told)
    found = Shards(work / ANSWERS)
    answers, tokens = sum(found.answer_lengths), sum(found.lengths)
    share = len(prompts) / max(len(found), 1)
    counts = Counts(
        records=len(prompts),
        prompt_tokens=round((tokens - answers) * share),
        answer_tokens=round(answers * share),
        likeliest=LIKELIEST,
    )
    return counts, speed
