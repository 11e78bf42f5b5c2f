"""Tiny models of transformers, prompts for them, and what they say with specplug and without."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from specplug.integrations.transformers import speculate
from tests_support.families import NAMED
from tests_support.tiny import write_checkpoint

PAD, EOS = 250, 256
FAST: dict[str, Any] = {"draft_tokens": 5}  # spares the measuring of costs


def tiny(folder: Path, family: str = "llama", **config: Any) -> Any:
    checkpoint = write_checkpoint(
        folder, model_type=family.split()[0], **(NAMED.get(family, {}) | config)
    )
    return transformers.AutoModelForCausalLM.from_pretrained(checkpoint)


def prompts(*lengths: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Repetitive prompts, so that lookup finds something, padded on the left."""
    random = np.random.default_rng(seed)
    ids = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        phrase = random.integers(0, 40, size=7)
        ids[row, max(lengths) - length :] = torch.tensor(np.resize(phrase, length))
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


def both(
    model: Any, inputs: dict[str, torch.Tensor], hook: Any = None, **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """What transformers says, and what specplug does."""
    options = {"max_new_tokens": 24, "do_sample": False, "pad_token_id": PAD} | options
    expected = model.generate(**inputs, **copy.deepcopy(options))
    return expected, model.generate(**inputs, **options, custom_generate=hook or speculate(**FAST))
