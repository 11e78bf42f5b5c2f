"""The block head: DFlash's shape (arXiv:2602.06036) in PyTorch, as the reference.

A head that guesses several tokens in one call. Its entries for the context are made of the
target's hidden states alone, the same ones in every layer; a block of tokens after them, the last
known one and then a mask token for every token that is to be guessed, sees the context and itself,
in both directions. The block's entries are of no use afterwards: the next call's take their place.

Names of weights are those of the ``speculators`` library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional

from specplug.export.head import Attention, Cache, HeadShape, Mlp, Norm, Rotation


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockShape(HeadShape):
    """What a block head is, but for its weights."""

    depth: int
    """Layers of its own."""
    block: int
    """Tokens of a block."""
    mask_token: int
    """What stands for a token that is to be guessed."""
    first_guess: int = 1
    """1: a block's tokens, but for the first, guess their own places; 0: all, the next ones."""


class BlockHead(nn.Module):
    """The module; weights are random until they are loaded.

    Args:
        shape: of it.
    """

    _cos: torch.Tensor
    _sin: torch.Tensor

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        self.shape = shape
        size = shape.hidden_size
        self.embed_tokens = nn.Embedding(shape.input_vocab_size, size)
        self.fc = nn.Linear(shape.features, size, bias=False)
        self.hidden_norm = Norm(size, eps=shape.epsilon)
        self.layers = nn.ModuleList(BlockLayer(shape) for _ in range(shape.depth))
        self.norm = Norm(size, eps=shape.epsilon)
        self.lm_head = nn.Linear(size, shape.vocab_size, bias=False)
        self.register_buffer("_cos", torch.from_numpy(shape.rotary.cos), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(shape.rotary.sin), persistent=False)

    def forward(
        self,
        features: torch.Tensor,
        block: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        past: Sequence[Cache | None] | None = None,
    ) -> tuple[torch.Tensor, list[Cache]]:
        """Read context, and guess a block after it.

        Args:
            features: the target's hidden states, f32[B, n, features]; n may be 0.
            block: tokens i64[B, m]; m may be 0.
            positions: i64[B, n + m], of both.
            mask: f32[B or 1, 1, m, entries], added to the products of queries and keys; None:
                everything is seen.
            past: by layer, the context's entries before these.

        Returns:
            Logits f32[B, m, vocab_size]; by layer, all entries.
        """
        context = self.hidden_norm(self.fc(features))
        hidden = self.embed_tokens(block)
        rotation = self._cos[positions][:, None], self._sin[positions][:, None]
        held: list[Cache] = []
        for layer, before in zip(self.layers, past or [None] * len(self.layers), strict=True):
            assert isinstance(layer, BlockLayer)
            hidden, entries = layer(context, hidden, rotation, mask, before)
            held.append(entries)
        return self.lm_head(self.norm(hidden)), held


class BlockLayer(nn.Module):
    """A decoder layer of Qwen3's, but that its attention has the context from elsewhere."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self.input_layernorm = Norm(size, eps=shape.epsilon)
        self.self_attn = Attention(shape, size)
        self.post_attention_layernorm = Norm(size, eps=shape.epsilon)
        self.mlp = Mlp(size, shape.intermediate_size)

    def forward(
        self,
        context: torch.Tensor,
        hidden: torch.Tensor,
        rotation: Rotation,
        mask: torch.Tensor | None,
        past: Cache | None,
    ) -> tuple[torch.Tensor, Cache]:
        """The block's hidden states, f32[B, m, D], and all entries."""
        attention, first = self.self_attn, context.shape[1]
        own = self.input_layernorm(hidden)
        keys, values = attention.entries(torch.cat([context, own], dim=1), rotation)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        queries = attention.queries(own, (rotation[0][:, :, first:], rotation[1][:, :, first:]))
        attended = functional.scaled_dot_product_attention(
            queries, keys, values, attn_mask=mask, enable_gqa=True
        )
        hidden = hidden + attention.join(attended)
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), (keys, values)
