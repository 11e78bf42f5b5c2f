"""The callable that ``generate`` hands its prepared inputs to."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers.generation import stopping_criteria as stopping
from transformers.generation.configuration_utils import GenerationMode
from transformers.generation.utils import (
    ALL_CACHE_NAMES,
    GenerateDecoderOnlyOutput,
    GenerationMixin,
)

from specplug.arguments import checked
from specplug.context import Token
from specplug.decoding import check_drafting
from specplug.drafters import OF_A_BUNDLE
from specplug.generation_options import DraftTokens
from specplug.history import History
from specplug.integrations.transformers.choosing import check_processors, sampling_params
from specplug.integrations.transformers.fields import check_fields
from specplug.integrations.transformers.kept import Settings, decoder_of, kept
from specplug.opening import check_drafter
from specplug.sampling import SamplingParams
from specplug.stats import SpeculationStats

_GENERATE = inspect.unwrap(GenerationMixin.generate).__code__
_MODES = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
# What ``generate`` prepares for every model, and what changes no token.
_PREPARED = {"attention_mask", "position_ids", "use_cache", "logits_to_keep", *ALL_CACHE_NAMES}
_RECORDED = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")


@checked(kept=("drafter", "draft_tokens"))
def speculate(
    *,
    bundle: str | Path | None = None,
    drafter: str = "auto",
    draft_tokens: DraftTokens = "auto",
    inexact_trees: bool = False,
    seed: int | None = None,
    tokenizer: Any = None,
    history: History | None = None,
) -> Speculate:
    """What to pass as ``custom_generate`` to ``model.generate``.

    Args:
        bundle: decode with this bundle's engine in place of the model, which is then only asked
            for its configuration; None: the model itself is the target.
        drafter: a name of :data:`specplug.drafters.DRAFTERS`; ``"draft"``, ``"self"``
            and ``"head"`` need a bundle.
        draft_tokens: how many tokens a round may draft; ``"auto"``: as many as pay.
        inexact_trees: draft trees also where that may change the text, as in half precision.
        seed: of sampling; None: drawn from PyTorch's default generator in each call, so that
            ``torch.manual_seed`` makes it repeatable.
        tokenizer: transformers' own, needed for ``stop_strings`` alone.
        history: texts of earlier calls, for drafters that look there; None: one of its own for
            each model.

    Raises:
        ValueError: an argument outside its range, or a drafter that needs a bundle.
    """
    check_drafter(drafter)
    check_drafting(drafter, draft_tokens)
    if drafter in OF_A_BUNDLE and bundle is None:
        raise ValueError(f"drafter {drafter!r} is a model in a bundle: give bundle, too")
    if seed is not None and not 0 <= seed < 1 << 64:
        raise ValueError(f"seed {seed}: it must be in [0, 2**64)")
    settings = Settings(
        bundle=Path(bundle).resolve() if bundle is not None else None,
        drafter=drafter,
        draft_tokens=draft_tokens,
        inexact_trees=inexact_trees,
        history=history,
    )
    return Speculate(settings, seed=seed, tokenizer=tokenizer)


class Speculate:
    """Decodes the prompts of a ``generate`` call, one after another; see :func:`speculate`.

    Engine, measured costs and what drafters learnt are kept for as long as the model lives, for
    all calls and all hooks with the same settings. Calls on one model wait for one another.
    """

    def __init__(self, settings: Settings, *, seed: int | None, tokenizer: Any) -> None:
        self.settings = settings
        self._seed, self._tokenizer = seed, tokenizer
        self.stats: list[SpeculationStats] = []
        """Of the latest call, one a row."""

    def __call__(
        self,
        model: Any,
        input_ids: torch.Tensor,
        *,
        logits_processor: Sequence[Any],
        stopping_criteria: Sequence[Any],
        generation_config: Any,
        stop_strings: str | list[str] | None = None,
        tokenizer: Any = None,
        streamer: Any = None,
        synced_gpus: bool = False,
        **model_kwargs: Any,
    ) -> torch.Tensor | GenerateDecoderOnlyOutput:
        """Run by ``generate``, with all that it prepared.

        Args:
            model: whose ``generate`` it is.
            input_ids: prompts, i64[B, n], padded on the left.
            logits_processor: transformers' own and the user's.
            stopping_criteria: likewise.
            generation_config: complete.
            stop_strings: an argument of ``generate``, which passes it on as it is.
            tokenizer: likewise.
            streamer: likewise; releases of transformers that pass it to callables.
            synced_gpus: likewise.
            model_kwargs: for the model's ``forward``.

        Returns:
            As ``generate`` does: i64[B, n + longest answer], or an output with ``sequences``.

        Raises:
            ValueError: something is asked for that cannot be had; before any work.
            EngineError: the model cannot be driven.
        """
        streamer = streamer or _of_generate("streamer")
        rows, width = input_ids.shape
        _check(model, generation_config, model_kwargs, rows=rows, streamer=streamer)
        check_processors(logits_processor, rows)
        padding = _padding(model_kwargs.get("attention_mask"), rows)
        ending = _Ending.of(
            stopping_criteria, stop_strings, tokenizer or self._tokenizer, width=width
        )
        pad = getattr(generation_config, "_pad_token_tensor", None)
        if rows > 1 and (ending.stop_token_ids or ending.criteria) and pad is None:
            raise ValueError(
                "answers of several prompts end at different lengths: give pad_token_id"
            )
        sampled = bool(generation_config.do_sample)
        seed = self._seed if sampled else 0
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, ()))
        samplings = [
            sampling_params(
                logits_processor,
                sampled=sampled,
                seed=seed,
                row=row,
                padding=input_ids[row, : padding[row]],
            )
            for row in range(rows)
        ]
        answers = self._answers(model, input_ids, padding, samplings, ending, streamer)
        if streamer is not None:
            streamer.end()
        longest = max(map(len, answers))
        filler = int(pad) if pad is not None else 0
        sequences = input_ids.new_full((rows, width + longest), filler)
        sequences[:, :width] = input_ids
        for row, answer in enumerate(answers):
            sequences[row, width : width + len(answer)] = torch.tensor(answer)
        if generation_config.return_dict_in_generate:
            return GenerateDecoderOnlyOutput(sequences=sequences)
        return sequences

    def _answers(
        self,
        model: Any,
        input_ids: torch.Tensor,
        padding: Sequence[int],
        samplings: Sequence[SamplingParams],
        ending: _Ending,
        streamer: Any,
    ) -> list[list[int]]:
        """The new tokens of each row, one row after another."""
        answers: list[list[int]] = []
        self.stats = []
        ours = kept(model)
        with ours.lock:
            decoder = decoder_of(model, ours, self.settings)
            decoder.stop_token_ids = frozenset(ending.stop_token_ids)
            for row, sampling in enumerate(samplings):
                prompt = input_ids[row, padding[row] :].tolist()
                rounds = cast(
                    Generator[list[Token]],
                    decoder.rounds(
                        prompt, max_tokens=ending.max_tokens, sampling=sampling, sample=row
                    ),
                )
                made = (token.id for tokens in rounds for token in tokens)
                with closing(rounds):  # a criterion may end it early
                    answers.append([*_until(made, ending.criteria, input_ids[row], streamer)])
                self.stats.append(decoder.stats)
                if decoder.finish_reason == "context":
                    warnings.warn(
                        f"row {row} ended at the context's {decoder.target.spec.context_limit} "
                        "tokens, short of its length",
                        stacklevel=2,
                    )
        return answers


@dataclass(frozen=True, slots=True)
class _Ending:
    """When a row's answer ends."""

    max_tokens: int
    stop_token_ids: tuple[int, ...]
    criteria: tuple[Callable[..., Any], ...]
    """Asked after each token."""

    @classmethod
    def of(
        cls, criteria: Sequence[Any], stop_strings: Any, tokenizer: Any, *, width: int
    ) -> _Ending:
        lengths = [one.max_length for one in criteria if type(one) is stopping.MaxLengthCriteria]
        ids = [one.eos_token_id for one in criteria if type(one) is stopping.EosTokenCriteria]
        native = (stopping.MaxLengthCriteria, stopping.EosTokenCriteria)
        asked = [one for one in criteria if type(one) not in native]
        if stop_strings is not None:
            if tokenizer is None:
                raise ValueError(
                    f"stop_strings {stop_strings!r} need the tokenizer, which generate does not "
                    "pass on: give it to speculate(tokenizer=…)"
                )
            asked.append(stopping.StopStringCriteria(tokenizer, stop_strings))
        if not lengths:
            raise ValueError("there is no length to stop at: give max_new_tokens or max_length")
        return cls(
            max_tokens=min(lengths) - width,
            stop_token_ids=tuple(int(token) for found in ids for token in found.flatten()),
            criteria=tuple(asked),
        )


def _until(
    tokens: Iterator[int],
    criteria: Sequence[Callable[..., Any]],
    prompt: torch.Tensor,
    streamer: Any,
) -> Iterator[int]:
    """The tokens up to the one that a criterion ends the answer at; the streamer is told."""
    so_far = prompt[None]
    for token in tokens:
        yield token
        if streamer is not None:
            streamer.put(torch.tensor([token]))
        if criteria:
            so_far = torch.cat([so_far, so_far.new_tensor([[token]])], dim=1)
            found = [bool(torch.as_tensor(ends(so_far, None)).all()) for ends in criteria]
            if any(found):  # after all were asked: some may count their calls
                return


def _check(
    model: Any, config: Any, model_kwargs: dict[str, Any], *, rows: int, streamer: Any
) -> None:
    """Refuse what cannot be honoured, by name."""
    if model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} is an encoder and a decoder: not supported")
    if model.training:
        raise ValueError("the model is in training mode: call model.eval() first")
    check_fields(config)
    mode = config.get_generation_mode(_of_generate("assistant_model"))
    if mode not in _MODES:
        raise ValueError(
            f"generation mode {mode.value}: speculation is for greedy search and sampling "
            "(no beams, no assistant model, no prompt_lookup_num_tokens)"
        )
    if config.return_dict_in_generate:
        for name in _RECORDED:
            if getattr(config, name):
                raise ValueError(f"{name}: only sequences can be had under speculation")
    if streamer is not None and rows > 1:
        raise ValueError(f"a streamer takes one prompt at a time: {rows} were given")
    cache = model_kwargs.get("past_key_values")
    if getattr(cache, "_is_user_defined", False):
        raise ValueError("past_key_values: specplug keeps a cache of its own; leave it out")
    for name, value in model_kwargs.items():
        if name not in _PREPARED and value is not None and name not in _RECORDED:
            raise ValueError(f"{name}: cannot be passed to the model under speculation")
    places, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if places is not None:
        counted = (
            (mask.long().cumsum(-1) - 1)
            if mask is not None
            else torch.arange(places.shape[-1], device=places.device).expand_as(places)
        )
        seen = mask.bool() if mask is not None else torch.ones_like(places, dtype=torch.bool)
        if places.shape != counted.shape or not bool((places == counted)[seen].all()):
            raise ValueError("position_ids: only those that follow from attention_mask are known")


def _padding(mask: torch.Tensor | None, rows: int) -> list[int]:
    """How many tokens at the beginning of each row are padding."""
    if mask is None:
        return [0] * rows
    kept_out = mask == 0
    for row in range(rows):
        if bool((kept_out[row, 1:] & ~kept_out[row, :-1]).any()):
            raise ValueError(
                f"attention_mask: row {row} has padding after its first token; pad on the left "
                "(tokenizer.padding_side = 'left')"
            )
    return [int(number) for number in kept_out.sum(dim=1)]


def _of_generate(name: str) -> Any:
    """An argument of the running ``generate`` that it does not pass to callables.

    Without the streamer its reader would wait for ever, and an assistant model would be left out
    without a word. Transformers 5.23 keeps both to itself, so its frame is looked at.
    """
    frame = sys._getframe(1)
    while frame is not None and frame.f_code is not _GENERATE:
        frame = frame.f_back  # type: ignore[assignment]
    return frame.f_locals.get(name) if frame is not None else None
