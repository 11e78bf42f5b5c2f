"""How to train, and what is reported of it."""

from __future__ import annotations

from dataclasses import dataclass

from specplug.arguments import check_types
from specplug.distilling.acceptance import Acceptance
from specplug.types import SpecplugError

_EVALUATIONS = 25  # and `patience` of them are a good part of the training


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingOptions:
    """How a head is trained.

    Raises:
        SpecplugError: a value that no training can have.
    """

    seed: int = 0
    """Of the order of the texts; with it, on as many threads, the weights are the same bit for bit.
    """
    epochs: int = 4
    learning_rate: float = 1e-3
    """The highest, after the warm-up; it falls to 0 along a cosine."""
    warm_up: float = 0.04
    """Share of the steps."""
    weight_decay: float = 0.01
    """Of matrices."""
    clip: float = 1.0
    """The most that the gradient's norm may be."""
    batch: int = 2048
    """Entries a step."""
    row: int = 512
    """Entries of a record that see one another; longer ones are cut."""
    own_steps: int = 4
    """Tokens that the head drafts in a row while it learns."""
    decay: float = 0.8
    """Weight of each own step, relative to the one before."""
    held_out: float = 0.04
    """Share of the prompts whose records acceptance is measured on."""
    most_held_out: int = 256
    """Records."""
    evaluate_every: int = 200
    """Steps, at least; a long training measures 25 times in all."""
    patience: int = 6
    """Evaluations without a better one, after which training ends."""
    checkpoint_seconds: float = 180
    report_every: int = 10
    """Steps."""
    precision: str = "auto"
    """Of products while training: bf16, fp32, or auto: bf16 where the processor multiplies it."""
    device: str = "cpu"
    """Or cuda."""

    def evaluation_steps(self, steps: int) -> int:
        """Steps from one evaluation to the next in a training of so many."""
        return max(self.evaluate_every, steps // _EVALUATIONS)

    def __post_init__(self) -> None:
        check_types(self)
        least = {
            "epochs": 1, "batch": 1, "row": 1, "own_steps": 1, "most_held_out": 1,
            "evaluate_every": 1, "patience": 1, "report_every": 1, "seed": 0,
            "checkpoint_seconds": 0, "weight_decay": 0,
        }  # fmt: skip
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise SpecplugError(f"{name} is {getattr(self, name)}: give {value} or more")
        for name in ("learning_rate", "clip", "decay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SpecplugError(f"{name} is {getattr(self, name)}: give more than 0")
        for name in ("warm_up", "held_out"):
            if not 0 < getattr(self, name) < 1:
                raise SpecplugError(
                    f"{name} is {getattr(self, name)}: give a share between 0 and 1"
                )
        if self.row > self.batch:
            raise SpecplugError(f"row is {self.row}: give no more than batch, {self.batch}")
        if self.precision not in ("auto", "bf16", "fp32"):
            raise SpecplugError(f"precision is {self.precision!r}: give auto, bf16 or fp32")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where training is."""

    step: int
    """Steps done."""
    steps: int
    """Planned."""
    epoch: int
    """From 0."""
    tokens_per_second: float
    """Entries learnt from, of late."""
    loss: float
    """Mean over the steps since the last report, in nats a token."""
    seconds_left: float
    """If it is not ended early."""
    acceptance: Acceptance | None
    """On the texts held out, where it was just measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What training came to."""

    best: Acceptance
    """On the texts held out, of the weights that the head has now."""
    best_step: int
    steps: int
    """Done."""
    stopped_early: bool
    seconds: float
    """Of all runs together."""
    records: int
    held_out: int
    """Records."""
