"""How a token is chosen: from transformers' list of processors to sampling parameters.

Truncations at the end of the list are specplug's own, which do the same in a fraction of the time.
Whatever comes before them is called as it is, on each row of logits, so its order and its meaning
are transformers'.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers.generation import logits_process as processing

from specplug.sampling import Processor, SamplingParams
from specplug.types import Float32Array, Int64Array

# In the order in which specplug applies them: the processor, its attribute and our parameter.
_OURS: tuple[tuple[type[Any], str, str], ...] = (
    (processing.TemperatureLogitsWarper, "temperature", "temperature"),
    (processing.TopKLogitsWarper, "top_k", "top_k"),
    (processing.TopPLogitsWarper, "top_p", "top_p"),
    (processing.MinPLogitsWarper, "min_p", "min_p"),
    (processing.TypicalLogitsWarper, "mass", "typical_p"),
)
# Drafted positions are scored too, some of them in vain: what remembers its calls goes astray.
_REMEMBERING: tuple[type[Any], ...] = (
    processing.UnbatchedClassifierFreeGuidanceLogitsProcessor,
    processing.SynthIDTextWatermarkLogitsProcessor,
    processing.WhisperNoSpeechDetection,
    processing.DiaEOSDelayPatternLogitsProcessor,
)
_PAIRED_ROWS: tuple[type[Any], ...] = (
    processing.ClassifierFreeGuidanceLogitsProcessor,
    processing.DiaClassifierFreeGuidanceLogitsProcessor,
    processing.AlternatingCodebooksLogitsProcessor,
)
_OF_ALL_ROWS: tuple[type[Any], ...] = (
    processing.EncoderRepetitionPenaltyLogitsProcessor,
    processing.EncoderNoRepeatNGramLogitsProcessor,
)


def check_processors(processors: Sequence[Any], rows: int) -> None:
    """Refuse processors whose result does not follow from a row's tokens and logits alone.

    Raises:
        ValueError: naming the processor.
    """
    for processor in processors:
        name = type(processor).__name__
        if isinstance(processor, _REMEMBERING):
            raise ValueError(
                f"{name} remembers earlier calls, and drafted tokens would be among them: "
                "leave it out, or generate without speculation"
            )
        if isinstance(processor, _PAIRED_ROWS):
            raise ValueError(f"{name} needs several rows at once, and here each is alone")
        if isinstance(processor, _OF_ALL_ROWS) and rows > 1:
            raise ValueError(f"{name} is for one prompt at a time here: {rows} were given")


def sampling_params(
    processors: Sequence[Any], *, sampled: bool, seed: int, row: int, padding: torch.Tensor
) -> SamplingParams:
    """What the processors ask for, for one row.

    Args:
        processors: transformers' list, checked.
        sampled: draw tokens; else the likeliest is taken.
        seed: of the noise.
        row: of the batch.
        padding: what precedes the row's prompt, i64[n], on the device that processors run on;
            they count it among the tokens.
    """
    called = list(processors)
    ours: dict[str, Any] = {}
    if sampled:
        ours = {"temperature": 1.0, "seed": seed}
        called, found = _split(called)
        ours |= found
    if called:
        ours["processors"] = (_calling(called, row, padding),)
    return SamplingParams(**ours)


def _split(processors: list[Any]) -> tuple[list[Any], dict[str, Any]]:
    """What is called, and our parameters for the rest of the list."""
    found: dict[str, Any] = {}
    place = len(_OURS)
    rest = list(processors)
    while rest:
        before = _place(rest[-1])
        if before is None or before >= place:
            break
        place = before
        _, attribute, name = _OURS[place]
        found[name] = getattr(rest.pop(), attribute)
    return rest, found


def _place(processor: Any) -> int | None:
    """Where in our order a processor comes that does just what we do."""
    plain = (
        getattr(processor, "min_tokens_to_keep", 1) == 1
        and getattr(processor, "filter_value", -math.inf) == -math.inf
    )
    kinds = [kind for kind, _, _ in _OURS]
    return kinds.index(type(processor)) if plain and type(processor) in kinds else None


def _calling(processors: Sequence[Any], row: int, padding: torch.Tensor) -> Processor:
    mine = [_of_row(processor, row) for processor in processors]

    def process(tokens: Int64Array, logits: Float32Array) -> Float32Array:
        ids = torch.cat([padding, torch.from_numpy(tokens.copy()).to(padding.device)])[None]
        scores = torch.from_numpy(logits.copy()).to(padding.device)[None]
        for processor in mine:
            scores = processor(ids, scores)
        found: Float32Array = scores[0].float().cpu().numpy()
        return found

    return process


def _of_row(processor: Any, row: int) -> Any:
    """A processor that knows rows by their number, for one of them."""
    if isinstance(processor, processing.RepetitionPenaltyLogitsProcessor) and isinstance(
        processor.prompt_ignore_length, torch.Tensor
    ):
        processor = copy.copy(processor)
        processor.prompt_ignore_length = processor.prompt_ignore_length[row : row + 1]
    elif isinstance(processor, processing.PrefixConstrainedLogitsProcessor):
        allowed: Callable[[int, torch.Tensor], list[int]] = processor._prefix_allowed_tokens_fn
        processor = processing.PrefixConstrainedLogitsProcessor(lambda _, ids: allowed(row, ids), 1)
    return processor
