"""How many drafted tokens of a head a text would accept: by position, at every place of answers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from specplug.distilling.batches import Batch
from specplug.distilling.own_steps import own_states
from specplug.export.head import Head

_CHUNK = 2048  # places whose logits are there at a time


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Counts over the places of answers where a round of drafting could begin."""

    tried: tuple[int, ...]
    """By the number of drafted tokens: places after which the text has as many."""
    accepted: tuple[int, ...]
    """Those of them where all are what the text says."""

    @property
    def by_position(self) -> tuple[float, ...]:
        """The chance that a draft is accepted up to there, by its length."""
        return tuple(
            hits / max(count, 1) for hits, count in zip(self.accepted, self.tried, strict=True)
        )

    @property
    def length(self) -> float:
        """Tokens a round: those accepted, and the one that the target adds."""
        return 1 + sum(self.by_position)


def measure(head: Head, batches: Iterable[Batch], precision: torch.dtype) -> Acceptance:
    """Draft greedily at every place of some answers, and compare with what they say."""
    tried = accepted = torch.zeros(0, dtype=torch.int64)
    for batch in batches:
        matched = accepted_at(head, batch, precision)
        batch_tried, batch_accepted = batch.counts.sum(1).cpu(), matched.sum(1).cpu()
        tried = batch_tried if not len(tried) else tried + batch_tried
        accepted = batch_accepted if not len(accepted) else accepted + batch_accepted
    return Acceptance(tuple(tried.tolist()), tuple(accepted.tolist()))


@torch.no_grad()
def accepted_at(head: Head, batch: Batch, precision: torch.dtype) -> torch.Tensor:
    """Whether drafts are accepted up to each own step, bool[S, A].

    The tokens that own steps read are the text's, which while all before are accepted are those
    that were drafted.
    """
    with torch.autocast(batch.tokens.device.type, precision, enabled=precision != torch.float32):
        states = own_states(head, batch).flatten(0, 1)
        likeliest = torch.cat(
            [head.lm_head(part).argmax(-1) for part in torch.split(states, _CHUNK)]
        )
    hits = likeliest.view_as(batch.wanted) == batch.wanted
    return hits.long().cumprod(0).bool()
