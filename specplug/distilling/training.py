"""Train a head on what its target said (EAGLE-3, arXiv:2503.01840, section 3).

The head drafts several tokens at every place of the answers at once, each step on its own hidden
state of the step before, and learns the target's distribution at each. Weights are fp32, products
bf16 where that is fast. A run that is killed goes on from its last checkpoint, and on the CPU ends
with the weights that it would have had.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import nn

from specplug.distilling.acceptance import measure
from specplug.distilling.batches import (
    ABREAST,
    Batch,
    Collator,
    Piece,
    batches_of,
    grouped,
    held_out,
    pieces_of,
    shuffled,
)
from specplug.distilling.checkpoints import Checkpoints
from specplug.distilling.journal import Journal
from specplug.distilling.loss import soft_cross_entropy
from specplug.distilling.optimizer import HeadOptimizer
from specplug.distilling.options import Progress, TrainingOptions, TrainingResult
from specplug.distilling.own_steps import own_states
from specplug.distilling.shards import Shards
from specplug.export.head import Head
from specplug.types import Int32Array, SpecplugError

_WITHOUT_EFFECT = ("checkpoint_seconds", "report_every", "precision")
"""Options that the weights do not depend on, or by what they come to."""
_SMOOTHING = 0.1  # of the measured speed

Report = Callable[[Progress], None]


def train(
    records: Shards,
    head: Head,
    vocabulary: Int32Array,
    folder: Path,
    options: TrainingOptions | None = None,
    report: Report = lambda progress: None,
) -> TrainingResult:
    """Train a head until it has seen all texts so often, or its acceptance no longer grows.

    Args:
        records: the texts; each is read when it is needed.
        head: from :func:`specplug.distilling.heads.new_head`; has the best weights afterwards.
        vocabulary: the target's ids that it guesses, ascending.
        folder: for the checkpoint and the journal; a training that was interrupted there goes on.
        options: the defaults if None.
        report: called every so many steps, and after each evaluation.

    Raises:
        SpecplugError: too few texts, the folder holds another training, a device that is not
            there, or the loss is no longer a number.
    """
    return _Training(records, head, vocabulary, folder, options or TrainingOptions(), report).run()


class _Training:
    def __init__(
        self,
        records: Shards,
        head: Head,
        vocabulary: Int32Array,
        folder: Path,
        options: TrainingOptions,
        report: Report,
    ) -> None:
        self._options, self._report, self._records = options, report, len(records)
        self._dtype = products(options.precision, options.device)
        self._head = head.to(options.device).train()
        head.embed_tokens.requires_grad_(False)
        self._collate = Collator(
            records,
            vocabulary,
            head.shape.input_vocab_size,
            options.own_steps,
            ABREAST[options.device],
        )
        lengths = zip(records.lengths, records.answer_lengths, strict=True)
        pieces = [
            piece
            for place, (tokens, answer) in enumerate(lengths)
            for piece in pieces_of(place, tokens, tokens - answer, options.row)
        ]
        self._kept_back = held_out(
            records.prompt_digests(), options.held_out, options.most_held_out
        )
        learnt, self._measured = (
            [p for p in pieces if (p.record in self._kept_back) is wanted]
            for wanted in (False, True)
        )
        if not learnt or not self._measured:
            raise SpecplugError(
                f"{len(records)} records, {len(self._kept_back)} of them held out: give more "
                "prompts, so that there are answers both to learn from and to measure on"
            )
        self._epochs = [
            shuffled(learnt, options.batch, options.seed, epoch) for epoch in range(options.epochs)
        ]
        self._steps = sum(map(len, self._epochs))
        self._weights = {name: w for name, w in head.named_parameters() if w.requires_grad}
        self._optimizer = HeadOptimizer(head, options)
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoints = Checkpoints(folder, self._plan(pieces, vocabulary))
        self._state = self._checkpoints.load(self._weights, self._optimizer)
        self._journal = Journal(folder, self._state.step)
        self._speed = 0.0  # entries a second

    def _plan(self, pieces: Sequence[Piece], vocabulary: Int32Array) -> dict[str, object]:
        """What the weights depend on."""
        digest = hashlib.sha256(vocabulary.tobytes())
        for piece in pieces:
            digest.update(repr(piece).encode())
        options = asdict(self._options).items()
        return {name: value for name, value in options if name not in _WITHOUT_EFFECT} | {
            "texts": digest.hexdigest(),
            "products": str(self._dtype),
        }

    def run(self) -> TrainingResult:
        """All steps that are left."""
        state, options = self._state, self._options
        before = state.seconds
        started = saved = began = time.monotonic()
        for epoch, batch in self._batches():
            if self._ended_early():
                break
            loss = train_step(
                self._head, batch, self._optimizer, self._rate(), options, self._dtype
            )
            if not math.isfinite(loss):
                raise SpecplugError(
                    f"the loss is {loss} at step {state.step}: give a lower learning_rate, now "
                    f"{options.learning_rate}"
                )
            state.step += 1
            state.losses = (*state.losses, loss)
            self._timed(len(batch.tokens) / (time.monotonic() - began))
            self._after_step(epoch)
            now = time.monotonic()
            state.seconds = before + now - started
            if now - saved > options.checkpoint_seconds or state.step == self._steps:
                self._save()
                saved = time.monotonic()
            began = time.monotonic()
        if self._ended_early():
            self._save()
        return self._result()

    def _batches(self) -> Iterator[tuple[int, Batch]]:
        """Those that are left, with their epochs."""
        done = self._state.step
        for epoch, groups in enumerate(self._epochs):
            left = groups[done:]
            done = max(done - len(groups), 0)
            for batch in batches_of(self._collate, left, self._options.device):
                yield epoch, batch

    def _ended_early(self) -> bool:
        return self._state.waited >= self._options.patience

    def _rate(self) -> float:
        """The learning rate of the next step."""
        step, options = self._state.step, self._options
        warm = max(round(options.warm_up * self._steps), 1)
        if step < warm:
            return options.learning_rate * (step + 1) / warm
        done = (step - warm) / max(self._steps - warm, 1)
        return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _timed(self, speed: float) -> None:
        self._speed += _SMOOTHING * (speed - self._speed) if self._speed else speed

    def _after_step(self, epoch: int) -> None:
        """Measure and report where it is time to."""
        state, options = self._state, self._options
        last = state.step == self._steps
        found = None
        if last or state.step % options.evaluation_steps(self._steps) == 0:
            groups = grouped(self._measured, options.batch)
            batches = batches_of(self._collate, groups, options.device)
            found = measure(self._head, batches, self._dtype)
            state.waited += 1
            if state.best is None or found.length > state.best.length:
                state.best, state.best_step, state.waited = found, state.step, 0
                state.best_weights = {n: w.detach().clone() for n, w in self._weights.items()}
        if found or last or state.step % options.report_every == 0:
            left = (self._steps - state.step) * options.batch / max(self._speed, 1e-9)
            progress = Progress(
                step=state.step,
                steps=self._steps,
                epoch=epoch,
                tokens_per_second=self._speed,
                loss=float(np.mean(state.losses)),
                seconds_left=left,
                acceptance=found,
            )
            state.losses = ()
            self._journal.add(progress)
            self._report(progress)

    def _save(self) -> None:
        self._checkpoints.save(self._state, self._weights, self._optimizer)

    def _result(self) -> TrainingResult:
        state = self._state
        assert state.best is not None  # the last step measures
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(state.best_weights[name])
        self._head.eval()
        return TrainingResult(
            best=state.best,
            best_step=state.best_step,
            steps=state.step,
            stopped_early=state.step < self._steps,
            seconds=state.seconds,
            records=self._records,
            held_out=len(self._kept_back),
        )


def train_step(
    head: Head,
    batch: Batch,
    optimizer: HeadOptimizer,
    rate: float,
    options: TrainingOptions,
    dtype: torch.dtype,
) -> float:
    """Learn from one batch; the loss before, in nats a token."""
    optimizer.zero_grad()
    loss = loss_of(head, batch, options.decay, dtype)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(head.parameters(), options.clip)
    optimizer.step(rate)
    return loss.item()


def loss_of(head: Head, batch: Batch, decay: float, dtype: torch.dtype) -> torch.Tensor:
    """Cross-entropy with the target's distributions inside the draft vocabulary, in nats a token.

    A place weighs as much as of the target's distribution is inside, and by its own step.

    Args:
        head: of which.
        batch: on what.
        decay: weight of each own step, relative to the one before.
        dtype: of products.
    """
    with torch.autocast(batch.tokens.device.type, dtype, enabled=dtype != torch.float32):
        states = own_states(head, batch)
    steps = torch.arange(len(batch.shares), device=batch.shares.device)
    shares = batch.shares * (decay**steps)[:, None, None]
    shares /= shares.sum().clamp_min(torch.finfo(torch.float32).tiny)
    return soft_cross_entropy(
        states.flatten(0, 1),
        head.lm_head.weight,
        batch.ids.flatten(0, 1),
        shares.flatten(0, 1),
        dtype,
    )


def products(precision: str, device: str) -> torch.dtype:
    """The type of products on a device.

    Args:
        precision: bf16, fp32, or auto.
        device: cpu or cuda.

    Raises:
        SpecplugError: there is no such device.
    """
    if device not in ("cpu", "cuda") or (device == "cuda" and not torch.cuda.is_available()):
        raise SpecplugError(f"device is {device!r}, which PyTorch does not have here: give cpu")
    if precision == "auto":
        precision = "bf16" if device == "cuda" or _multiplies_bf16() else "fp32"
    return torch.bfloat16 if precision == "bf16" else torch.float32


def _multiplies_bf16() -> bool:
    """Whether the processor does, rather than PyTorch by fp32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
