"""Cross-entropy with the target's likeliest tokens, without all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch

_CHUNK = 2048  # rows whose logits are there at a time


def soft_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    ids: torch.Tensor,
    shares: torch.Tensor,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The sum over rows of ``-shares * log p(ids)``, where p is softmax of ``hidden @ weight.T``.

    Rows whose shares add up to less than 1 weigh less. Gradients are computed with the loss, chunk
    by chunk.

    Args:
        hidden: f32[M, D].
        weight: f32[V, D].
        ids: i64[M, K], below V.
        shares: f32[M, K], no gradient.
        dtype: of the products.

    Returns:
        f32[].
    """
    loss: torch.Tensor = _SoftCrossEntropy.apply(hidden, weight, ids, shares, dtype)  # type: ignore[no-untyped-call]
    return loss


class _SoftCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        ids: torch.Tensor,
        shares: torch.Tensor,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        made_weight = weight.to(dtype)
        hidden_gradient = torch.empty_like(hidden, dtype=torch.float32)
        weight_gradient = weight.new_zeros(weight.shape[::-1])
        loss = hidden.new_zeros((), dtype=torch.float32)
        tiny = torch.finfo(dtype).tiny
        for start in range(0, len(hidden), _CHUNK):
            rows = slice(start, start + _CHUNK)
            inputs, wanted = hidden[rows].to(dtype), shares[rows]
            logits = inputs @ made_weight.T
            chances = logits.softmax(-1)
            picked, places = chances.gather(1, ids[rows]).max(-1, keepdim=True)
            scores = logits.gather(1, ids[rows]).float()
            normalizer = scores.gather(1, places) - picked.float().clamp_min(tiny).log()
            loss += (wanted * (normalizer - scores)).sum()
            chances *= wanted.sum(-1, keepdim=True).to(dtype)
            # Places that repeat have shares of 0 all but once.
            if chances.is_cuda:
                chances.scatter_add_(1, ids[rows], -wanted.to(dtype))
            else:  # flat, where scatter_add_ is slow
                begins = torch.arange(len(inputs))[:, None] * len(weight)
                chances.put_(ids[rows] + begins, -wanted.to(dtype), accumulate=True)
            hidden_gradient[rows] = chances @ made_weight
            # The large matrix as it lies in memory: chances.T @ inputs takes twice as long.
            weight_gradient += inputs.T.contiguous() @ chances
        ctx.save_for_backward(hidden_gradient, weight_gradient.T.contiguous())
        return loss

    @staticmethod
    def backward(ctx: Any, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return outer[0] * hidden_gradient, outer[0] * weight_gradient, None, None, None
