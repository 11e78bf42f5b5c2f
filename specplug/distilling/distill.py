"""From a model and prompts to a draft head: answers, training, result, each of which resumes."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from specplug.arguments import check_types, checked
from specplug.batching import BatchDecoder
from specplug.bench.workload import Item
from specplug.bundle import Bundle, open_tokenizer
from specplug.distilling.answers import (
    AnswerOptions,
    AnswerProgress,
    Recorder,
    save_answers,
    write_answers,
)
from specplug.distilling.curve import draw_curve
from specplug.distilling.heads import head_shape, new_head, save_head, with_vocabulary
from specplug.distilling.options import Progress, TrainingOptions, TrainingResult
from specplug.distilling.shards import Shards
from specplug.distilling.torch_target import TorchTarget
from specplug.distilling.torch_target import write_answers as write_answers_with_torch
from specplug.distilling.training import products, train
from specplug.distilling.vocabulary import Vocabulary, choose_vocabulary, describe_vocabulary
from specplug.export import export_bundle
from specplug.export.attention import max_entries
from specplug.export.head import Head, HeadShape
from specplug.export.precision import Precision
from specplug.export.provenance import write_provenance
from specplug.export.source import Source, open_source
from specplug.export.speculators import HeadSource, open_head
from specplug.export.tokenizers import write_tokenizer
from specplug.opening import open_decoder
from specplug.staging import HEAD, check_place, check_writable, replace_file, staged
from specplug.text import Tokenizer
from specplug.types import SpecplugError

CURVE = "training.png"
ANSWERS = "answers"
_TARGET, _TRAINING, _PLAN = "target.bundle", "training", "distillation.json"
_VOCABULARY = 8192  # tokens, of a new head
_TOOLS = ("specplug", "onnxruntime", "torch", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillOptions:
    """What a head is to be, and how it comes to be."""

    precision: Literal["auto"] | Precision = "auto"
    """Of the target while it answers."""
    start_from: Path | None = None
    """A head of the target to train on, whose layers stay; None: a new one."""
    layers: tuple[int, ...] | None = None
    """Of the target, whose inputs the head reads; None: a low, a middle and a high one."""
    vocabulary: int | None = None
    """Tokens that the head guesses, chosen anew; None: those of the head it starts from, or 8,192
    tokens."""
    max_batch: int = 32
    """Answers that are written at the same time: by ONNX Runtime, or on a GPU, if it is trained on
    one, by PyTorch."""
    threads: int | None = None
    eight_bits: bool = False
    """Write the head's matrices in 8 bits."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    training: TrainingOptions = field(default_factory=TrainingOptions)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("vocabulary", "max_batch", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SpecplugError(f"{name} is {value}: give 1 or more")


@dataclass(frozen=True, slots=True)
class Told:
    """Who is told how far it is."""

    stage: Callable[[str], None] = lambda name: None
    answers: Callable[[AnswerProgress], None] = lambda progress: None
    training: Callable[[Progress], None] = lambda progress: None
    note: Callable[[str], None] = lambda text: None


@dataclass(frozen=True, slots=True)
class Distilled:
    """What came of it."""

    result: TrainingResult
    vocabulary: Vocabulary
    answers: int
    tokens: int
    """Of the answers."""


def work_folder(output: Path) -> Path:
    """Where a distillation keeps what it needs to go on after an interruption."""
    return output.parent / f"{output.name}.work"


@checked()
def distill(
    source: str | Path,
    prompts: Sequence[Item],
    output: str | Path,
    options: DistillOptions | None = None,
    *,
    force: bool = False,
    keep_work: bool = False,
    save_to: str | Path | None = None,
    told: Told | None = None,
) -> Distilled:
    """Train a head for a model on the model's own answers, and write it in speculators' format.

    An interrupted run goes on where it was, from the folder :func:`work_folder` beside the output,
    which is removed at the end.

    Args:
        source: the target, as :func:`specplug.export.export_bundle` takes it.
        prompts: the user's messages that it answers, or has answered.
        output: the head's folder.
        options: the defaults if None.
        force: replace an existing head.
        keep_work: leave the answers and the checkpoint.
        save_to: a file for the answers' text; see
            :func:`specplug.distilling.answers.save_answers`.
        told: who is told how far it is.

    Raises:
        SpecplugError: something is in the way, the work folder is another distillation's, or there
            are too few answers to learn from.
    """
    options, told = options or DistillOptions(), told or Told()
    source, output = Path(source), Path(output)
    save_to = Path(save_to) if save_to is not None else None
    check_place(output.absolute(), replace=force, known_by=HEAD)
    if save_to is not None:
        check_writable(save_to.absolute().parent)
    products(options.training.precision, options.training.device)  # not to fail after the answers
    told.stage(f"reading {source.name}")
    opened = open_source(source)
    start = open_start(opened, options)
    shape = shape_for(opened, start, options)
    work = work_folder(output)
    plan = _plan(opened, start, prompts, options, shape.layers)
    _claim(work, plan)
    tokenizer = tokenizer_of(opened, work)
    records = answer(source, opened, shape.layers, tokenizer, prompts, work, options, told)
    if save_to is not None:
        save_answers(records, prompts, tokenizer, save_to)
    told.stage("choosing the draft vocabulary")
    head, vocabulary = _head(shape, opened, start, records, tokenizer.stop_token_ids, options)
    told.stage("training the head")
    training = work / _TRAINING
    if options.threads:
        torch.set_num_threads(options.threads)
    result = train(records, head, vocabulary.ids, training, options.training, report=told.training)
    told.stage("writing the head")
    made = Distilled(result, vocabulary, len(records), sum(records.answer_lengths))
    with staged(output, replace=force, known_by=HEAD) as stage:
        draw_curve(training, stage / CURVE)
        save_head(
            stage,
            head,
            opened,
            vocabulary.ids,
            _provenance(opened, plan, made),
            eight_bits=options.eight_bits,
        )
    if not keep_work:
        shutil.rmtree(work)
    return made


def _head(
    shape: HeadShape,
    source: Source,
    start: HeadSource | None,
    records: Shards,
    ends: Sequence[int],
    options: DistillOptions,
) -> tuple[Head, Vocabulary]:
    """What training begins with."""
    texts, count = records.without_states(), shape.input_vocab_size
    if start and options.vocabulary is None:
        assert isinstance(start.head, Head)  # by open_start
        ids = np.arange(count, dtype=np.int32) if start.vocabulary is None else start.vocabulary
        return start.head, describe_vocabulary(texts, ids, count)
    vocabulary = choose_vocabulary(texts, shape.vocab_size, count, ends)
    if start:
        return with_vocabulary(start, source, vocabulary.ids), vocabulary
    return new_head(shape, source, vocabulary.ids, options.training.seed), vocabulary


def open_start(source: Source, options: DistillOptions) -> HeadSource | None:
    """The head that a target's begins as, if it is one.

    Raises:
        SpecplugError: it guesses blocks, which training here does not teach.
    """
    if options.start_from is None:
        return None
    start = open_head(options.start_from, source)
    if not isinstance(start.head, Head):
        raise SpecplugError(
            f"{start.path} guesses {start.head.shape.block} tokens at a call: only heads of kind "
            "eagle3 can be trained further"
        )
    return start


def shape_for(source: Source, start: HeadSource | None, options: DistillOptions) -> HeadShape:
    """The shape of a target's head, which begins as another or anew."""
    config = source.config
    size = min(options.vocabulary or _VOCABULARY, int(config.vocab_size))
    if start is None:
        layers = options.layers or default_layers(int(config.num_hidden_layers))
        return head_shape(config, layers, size, max_entries(config) - 1)
    shape = start.head.shape
    if options.layers not in (None, shape.layers):
        raise SpecplugError(
            f"layers are {options.layers}, and the head {start.path} reads "
            f"{shape.layers}: leave them out"
        )
    return shape if options.vocabulary is None else replace(shape, vocab_size=size)


def default_layers(count: int) -> tuple[int, ...]:
    """A low, a middle and a high layer of so many, as EAGLE-3 has them."""
    return tuple(sorted({min(2, count - 1), count // 2, max(count - 3, 0)}))


def _plan(
    source: Source,
    start: HeadSource | None,
    prompts: Sequence[Item],
    options: DistillOptions,
    layers: tuple[int, ...],
) -> dict[str, Any]:
    """What the result depends on."""
    texts = json.dumps([(item.prompt, item.answer, item.ended) for item in prompts])
    digest = hashlib.sha256(texts.encode()).hexdigest()
    training = asdict(options.training)
    for name in ("checkpoint_seconds", "report_every"):
        del training[name]
    return {
        "source": source.hashes(),
        "prompts": {"count": len(prompts), "sha256": digest},
        "precision": options.precision,
        "start_from": start and start.hashes(),
        "layers": list(layers),
        "vocabulary": options.vocabulary,
        "answers": asdict(options.answers) | {"temperatures": [*options.answers.temperatures]},
        "training": training,
    }


def _claim(work: Path, plan: dict[str, Any]) -> None:
    """Make the work folder, or go on with it if it is of the same plan but for the training."""
    path = work / _PLAN
    if path.exists():
        known = json.loads(path.read_text())
        changed = [name for name in plan if name != "training" and known.get(name) != plan[name]]
        if changed:
            raise SpecplugError(
                f"{work} is of a distillation with other {' and '.join(changed)}: give the same, "
                "another output, or delete it"
            )
        if known["training"] != plan["training"]:  # the answers are the same
            shutil.rmtree(work / _TRAINING, ignore_errors=True)
    work.mkdir(parents=True, exist_ok=True)
    replace_file(path, lambda part: part.write_text(json.dumps(plan, indent=1) + "\n"))


def answer(
    source: Path,
    opened: Source,
    layers: tuple[int, ...],
    tokenizer: Tokenizer,
    prompts: Sequence[Item],
    work: Path,
    options: DistillOptions,
    told: Told,
) -> Shards:
    """Have the target answer in a work folder, or go on with it, where the head is trained."""
    folder, device = work / ANSWERS, options.training.device
    if (folder / "complete").exists():
        return Shards(folder)
    if device == "cpu":
        bundle = work / _TARGET
        if not bundle.exists():
            told.stage("exporting the target with its hidden states")
            export_bundle(
                source, bundle, precision=options.precision, hidden=layers, note=told.note
            )
        told.stage("answering")
        with _open_recorder(bundle, options) as decoder:
            records = write_answers(decoder, prompts, folder, options.answers, told.answers)
    else:
        told.stage(f"answering on {device}")
        target = TorchTarget(opened, layers, device)
        records = write_answers_with_torch(
            target, tokenizer, prompts, folder, options.answers, options.max_batch, told.answers
        )
    (folder / "complete").touch()
    return records


def _open_recorder(bundle: Path, options: DistillOptions) -> BatchDecoder:
    own = {"drafter": Recorder(), "draft_tokens": 0, "prefix_cache_bytes": 0}
    return open_decoder(
        BatchDecoder,
        own,
        Bundle.open(bundle),
        "none",
        max_batch=options.max_batch,
        threads=options.threads,
    )


def tokenizer_of(source: Source, folder: Path) -> Tokenizer:
    """A target's tokenizer, by way of a file in a folder.

    Raises:
        SpecplugError: it has none.
    """
    if source.tokenizer is None:
        raise SpecplugError(f"{source.path.name} has no tokenizer: prompts need one")
    return open_tokenizer(folder, write_tokenizer(source.tokenizer, folder))


def _provenance(source: Source, plan: dict[str, Any], made: Distilled) -> dict[str, Any]:
    """Where a head comes from."""
    result, licence = made.result, source.licence
    base = write_provenance(
        source.name or source.path.name, source.hashes(), _TOOLS, licence=licence
    )
    return {
        "target": base.model_dump(mode="json"),
        "licence": f"learnt from answers of the target, whose licence is {licence or 'unknown'}",
        **{name: plan[name] for name in plan if name != "source"},
        "answered": {"prompts": made.answers, "tokens": made.tokens},
        "draft_vocabulary": {
            "tokens": len(made.vocabulary.ids),
            "of_the_answers": made.vocabulary.covered / max(made.vocabulary.answers, 1),
        },
        "training_steps": result.best_step,
        "acceptance": [round(share, 4) for share in result.best.by_position],
        "acceptance_length": round(result.best.length, 4),
    }
