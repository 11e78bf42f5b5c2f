"""The draft head: EAGLE-3's shape (arXiv:2503.01840) in PyTorch, for training and as the reference.

A head guesses what the target says next from what the target thinks. Its entry for position i is
made of the token at i + 1 and a hidden state of position i; one decoder layer over all entries so
far makes of it logits for the token at i + 2, and a hidden state of its own of position i + 1,
which takes the place of the target's while that token is only drafted.

Names of weights are those of the ``speculators`` library.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from specplug.export.attention import Rotary

Cache = tuple[torch.Tensor, torch.Tensor]
"""Keys and values, f32[B, heads of keys, entries, size of a head]."""
Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines, f32[B, 1, T, half the size of a head]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadShape:
    """What a head is, but for its weights."""

    input_vocab_size: int
    """Of the target: the tokens that it reads."""
    vocab_size: int
    """The tokens that it guesses, perhaps fewer."""
    layers: tuple[int, ...]
    """Of the target, whose inputs it reads."""
    target_size: int
    """Values of one of these, a token."""
    hidden_size: int
    """Values of its own hidden states, and of embeddings."""
    intermediate_size: int
    heads: int
    key_heads: int
    head_size: int
    epsilon: float
    """Of all norms."""
    rotary: Rotary
    max_length: int
    """Entries it can have."""
    query_key_norm: bool = False
    """Whether queries and keys are normed, as in Qwen3."""
    norm_before_residual: bool = False
    """Whether what the layer adds to is the normed hidden state."""
    norm_before_fc: bool = False
    """Whether the target's hidden states are normed, all as one."""
    fc_norm: bool = False
    """Whether they are, each by itself."""
    norm_output: bool = False
    """Whether its own hidden states are normed before they are fed back."""

    @property
    def features(self) -> int:
        """Values of the target's hidden states, a token."""
        return len(self.layers) * self.target_size


class Head(nn.Module):
    """The module; weights are random until they are loaded.

    Args:
        shape: of it.
    """

    _cos: torch.Tensor
    _sin: torch.Tensor

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        self.shape = shape
        size = shape.hidden_size

        def norm(width: int) -> nn.RMSNorm:
            return Norm(width, eps=shape.epsilon)

        self.embed_tokens = nn.Embedding(shape.input_vocab_size, size)
        self.fc = nn.Linear(shape.features, size, bias=False)
        self.input_norm = norm(shape.features) if shape.norm_before_fc else None
        self.fc_norm = (
            nn.ModuleList(norm(shape.target_size) for _ in shape.layers) if shape.fc_norm else None
        )
        self.layers = nn.ModuleList([Layer(shape)])
        self.norm = norm(size)
        self.lm_head = nn.Linear(size, shape.vocab_size, bias=False)
        self.register_buffer("_cos", torch.from_numpy(shape.rotary.cos), persistent=False)
        self.register_buffer("_sin", torch.from_numpy(shape.rotary.sin), persistent=False)

    def fuse(self, features: torch.Tensor) -> torch.Tensor:
        """The target's hidden states, f32[B, T, features], as one of the head's, f32[B, T, D]."""
        if self.input_norm is not None:
            features = self.input_norm(features)
        if self.fc_norm is not None:
            parts = features.chunk(len(self.fc_norm), dim=-1)
            features = torch.cat(
                [norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], dim=-1
            )
        fused: torch.Tensor = self.fc(features)
        return fused

    def forward(
        self,
        tokens: torch.Tensor,
        hidden: torch.Tensor,
        positions: torch.Tensor,
        mask: torch.Tensor | None = None,
        past: Cache | None = None,
        scores_from: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor, Cache]:
        """Run entries through the layer.

        Args:
            tokens: i64[B, T], each the one after the position that its hidden state is of.
            hidden: f32[B, T, D], from :meth:`fuse` or from an earlier call.
            positions: i64[B, T], of the entries.
            mask: f32[B or 1, 1, T, entries], added to the products of queries and keys; None: an
                entry sees those before it and itself.
            past: the entries before these.
            scores_from: the first entry whose logits are wanted.

        Returns:
            Logits f32[B, T - scores_from, vocab_size]; the head's own hidden states f32[B, T, D];
            all entries.
        """
        rotation = self.rotation(positions)
        read, residual = self.layer.read(self.embed_tokens(tokens), hidden)
        attention = self.layer.self_attn
        keys, values = attention.entries(read, rotation)
        if past is not None:
            keys, values = torch.cat([past[0], keys], 2), torch.cat([past[1], values], 2)
        if mask is None:
            mask = _causal(read, keys.shape[2])
        attended = functional.scaled_dot_product_attention(
            attention.queries(read, rotation), keys, values, attn_mask=mask, enable_gqa=True
        )
        hidden = self.layer.add(residual, attended)
        normed = self.norm(hidden)
        own = normed if self.shape.norm_output else hidden
        return self.lm_head(normed[:, scores_from:]), own, (keys, values)

    @property
    def layer(self) -> Layer:
        """The only one."""
        return cast(Layer, self.layers[0])

    def rotation(self, positions: torch.Tensor) -> Rotation:
        """How queries and keys of entries are rotated, by their positions i64[B, T]."""
        return self._cos[positions][:, None], self._sin[positions][:, None]


def _causal(read: torch.Tensor, entries: int) -> torch.Tensor:
    """The mask with which the last entries see those before them and themselves."""
    width = read.shape[1]
    seen = torch.ones(width, entries, dtype=torch.bool, device=read.device)
    mask = torch.zeros(width, entries, device=read.device, dtype=read.dtype)
    return mask.masked_fill_(~seen.tril(entries - width), -torch.inf)


class Norm(nn.RMSNorm):
    """In the type of its weights, also where autocast makes the values bf16."""

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the same shape."""
        return super().forward(values.to(self.weight.dtype))


class Layer(nn.Module):
    """A decoder layer whose attention reads an embedding beside a hidden state.

    In parts, since training attends otherwise than drafting: :meth:`read`, then what
    :attr:`self_attn` makes of it, then :meth:`add`.
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        size = shape.hidden_size
        self._norm_before_residual = shape.norm_before_residual
        self.input_layernorm = Norm(size, eps=shape.epsilon)
        self.hidden_norm = Norm(size, eps=shape.epsilon)
        self.self_attn = Attention(shape, 2 * size)
        self.post_attention_layernorm = Norm(size, eps=shape.epsilon)
        self.mlp = Mlp(size, shape.intermediate_size)

    def read(self, embeds: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What attention reads, f32[B, T, 2 D], and what the layer adds to, f32[B, T, D]."""
        normed = self.hidden_norm(hidden)
        read = torch.cat([self.input_layernorm(embeds), normed], dim=-1)
        return read, normed if self._norm_before_residual else hidden

    def add(self, residual: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """The layer's hidden states, f32[B, T, D], from values f32[B, heads, T, size of a head]."""
        total = self.self_attn.join(attended) + residual
        made: torch.Tensor = total + self.mlp(self.post_attention_layernorm(total))
        return made


class Attention(nn.Module):
    """Queries, keys and values of entries; who sees whom is the caller's.

    Args:
        shape: of the head.
        width: values of what it reads.
    """

    def __init__(self, shape: HeadShape, width: int) -> None:
        super().__init__()
        size = shape.head_size
        self._size = size
        self.q_proj = nn.Linear(width, shape.heads * size, bias=False)
        self.k_proj = nn.Linear(width, shape.key_heads * size, bias=False)
        self.v_proj = nn.Linear(width, shape.key_heads * size, bias=False)
        self.o_proj = nn.Linear(shape.heads * size, shape.hidden_size, bias=False)
        normed = shape.query_key_norm
        self.q_norm = Norm(size, eps=shape.epsilon) if normed else nn.Identity()
        self.k_norm = Norm(size, eps=shape.epsilon) if normed else nn.Identity()

    def queries(self, read: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """f32[B, heads, T, size of a head], rotated."""
        return self._rotated(self.q_norm, self.q_proj(read).to(read.dtype), rotation)

    def entries(self, read: torch.Tensor, rotation: Rotation) -> Cache:
        """Keys, rotated, and values, each f32[B, heads of keys, T, size of a head]."""
        keys = self._rotated(self.k_norm, self.k_proj(read).to(read.dtype), rotation)
        return keys, self._by_head(self.v_proj(read))

    def join(self, attended: torch.Tensor) -> torch.Tensor:
        """f32[B, T, D] from what every head's queries found, f32[B, heads, T, size of a head]."""
        joined: torch.Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return joined

    def _rotated(self, norm: nn.Module, values: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Rotate halves of every head against one another."""
        (first, second), (cos, sin) = norm(self._by_head(values)).chunk(2, dim=-1), rotation
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _by_head(self, values: torch.Tensor) -> torch.Tensor:
        heads = values.shape[-1] // self._size  # not -1, which is nothing's size where T is 0
        return values.view(*values.shape[:-1], heads, self._size).transpose(1, 2)


class Mlp(nn.Module):
    """A gated one."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(size, inner, bias=False)
        self.up_proj = nn.Linear(size, inner, bias=False)
        self.down_proj = nn.Linear(inner, size, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values of the same shape."""
        made: torch.Tensor = self.down_proj(
            functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        )
        return made
