"""A head run as it drafts, at every place of many texts at once (EAGLE-3's training-time test).

An entry of own step s stands for the s-th drafted token. It sees what it would see when drafting:
the entries of the target's hidden states up to the place where drafting began, and those of the own
steps since, of the same place.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from specplug.distilling.batches import Batch, Rectangle
from specplug.export.head import Cache, Head


def own_states(head: Head, batch: Batch) -> torch.Tensor:
    """What the head's output layer reads, f32[S, A, D]."""
    attention = head.layer.self_attn
    fused = head.fuse(batch.states[None].float()).float()  # what is added to stays in fp32
    read, residual = head.layer.read(head.embed_tokens(batch.tokens[None]), fused)
    keys, values = attention.entries(read, head.rotation(batch.positions[None]))
    context = keys.to(values.dtype), values
    read, residual = read[:, batch.guessing], residual[:, batch.guessing]
    positions = batch.positions[batch.guessing][None]
    own: list[Cache] = []
    found: list[torch.Tensor] = []
    hidden = residual
    for step, tokens in enumerate(batch.read):
        rotation = head.rotation(positions + step)
        if step > 0:
            read, residual = head.layer.read(head.embed_tokens(tokens[None]), hidden)
            own.append(attention.entries(read, rotation))
        queries = attention.queries(read, rotation)
        hidden = head.layer.add(residual, _attend(queries, context, own, batch.rectangles))
        normed = head.norm(hidden)
        found.append(normed)
        if head.shape.norm_output:
            hidden = normed
    return torch.cat(found)


def _attend(
    queries: torch.Tensor,
    context: Cache,
    own: Sequence[Cache],
    rectangles: Sequence[Rectangle],
) -> torch.Tensor:
    """What queries of the guessing entries find, f32[1, heads, A, size of a head].

    Args:
        queries: f32[1, heads, A, size of a head].
        context: keys and values of all entries.
        own: of the guessing entries at each own step so far.
        rectangles: all of the batch.
    """
    keys, values = (part[0] for part in context)
    grouped = queries[0].view(len(keys), -1, *queries.shape[2:]) * queries.shape[-1] ** -0.5
    scores = [(grouped * own_keys[0][:, None]).sum(-1) for own_keys, _ in own]
    own_scores = torch.stack(scores, -1) if own else grouped.new_empty(*grouped.shape[:-1], 0)
    asking, own_scores = grouped.to(values.dtype), own_scores.to(values.dtype)
    found, own_shares = [], []
    for each in rectangles:
        asked = asking[:, :, each.guesses].transpose(1, 2)  # [kv heads, P, group, a, ...]
        key, value = keys[:, each.entries], values[:, each.entries]
        scored = (asked.flatten(2, 3) @ key.mT).view(*asked.shape[:4], -1)
        scored = scored.masked_fill(each.unseen, -torch.inf)
        seen = scored.shape[-1]
        own_score = own_scores[:, :, each.guesses].transpose(1, 2)
        shares = torch.cat([scored, own_score], -1).softmax(-1)
        own_shares.append(each.flatten(shares[..., seen:]))
        summed = (shares[..., :seen].flatten(2, 3) @ value).view(asked.shape)
        found.append(each.flatten(summed))
    total = torch.cat(found, 2)
    for share, (_, own_values) in zip(torch.cat(own_shares, 2).unbind(-1), own, strict=True):
        total = total + share[..., None] * own_values[0][:, None]
    return total.flatten(0, 1)[None]
