"""Tiny random checkpoints in Hugging Face form, with a tokenizer that any text passes through."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


def byte_tokenizer(extra: tuple[str, ...] = ()) -> Tokenizer:
    """One token a byte, then the special ones; ``extra`` tokens come last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token) for token in [*SPECIAL_TOKENS, *extra]])
    return tokenizer


def write_checkpoint(
    folder: Path,
    *,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    model_type: str = "llama",
    **config: Any,
) -> Path:
    """Write a random model of two layers.

    ``config`` overrides the transformers configuration; what is None there is left to its default.
    """
    tokenizer = tokenizer or byte_tokenizer()
    settings = {
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "max_position_embeddings": 1200,
        "eos_token_id": tokenizer.token_to_id("<|end|>"),
        "bos_token_id": None,
        "tie_word_embeddings": True,
        "initializer_range": 0.3,  # far from 0, so that logits differ well
    } | config
    settings = {name: value for name, value in settings.items() if value is not None}
    torch.manual_seed(seed)
    made = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(model_type, **settings)
    )
    made.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "eos_token": "<|end|>",
                "chat_template": CHAT_TEMPLATE,
            }
        )
    )
    return folder


def greedy_tokens(folder: Path, prompt: list[int], count: int) -> list[int]:
    """What transformers decodes greedily, one full pass a token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokens = list(prompt)
    with torch.inference_mode():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(prompt) :]
