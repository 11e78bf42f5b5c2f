"""A decoder of several rows that knows what its target's calls cost, and so how much to draft."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from specplug.batch_costs import call_costs, measure_batch_costs
from specplug.claims import Claim
from specplug.controller import CallCosts, CostsByContext, DraftLength, FixedLength, MeasuredLength
from specplug.decoding import Decoder
from specplug.drafters import NoDrafter
from specplug.tenants import Tenants
from specplug.types import EngineError

_log = logging.getLogger(__name__)


class MeasuredDecoder(Decoder):
    """The part of :class:`specplug.batching.BatchDecoder` that measures costs and sets lengths."""

    def __init__(
        self,
        *args: Any,
        batch_costs: Mapping[int, Mapping[int, float]] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self.max_batch = self.target.spec.max_batch
        """Generations that run at the same time."""
        self.failures = 0
        """Steps in which the engine failed, since an answer was completed."""
        self._batch_costs = batch_costs
        self._lengths: dict[int, Tenants[DraftLength]] = {}  # by rows of a call
        self._held: Claim | None = None  # of the engines, while a prompt is read or a row runs

    def prepare(self) -> None:
        """Measure what calls of several rows cost, if it matters; takes seconds, and only once.

        The first step does it, unless it was done before.

        Raises:
            DecoderBusyError: as :meth:`step`.
            EngineError: the decoder is closed.
        """
        with self._calling(wait=False):
            self._check_open()
            claim = self._claim() if self._held is None else None
            try:
                self._measure()
            finally:
                if claim is not None:
                    claim.release()

    def _measure(self) -> None:
        if self._batch_costs is not None or not self._measures:
            return
        try:
            self._batch_costs = measure_batch_costs(
                self.target, self.max_batch, alone=self._costs is None
            )
        except EngineError as error:
            _log.warning("nothing is drafted: what calls cost could not be measured: %s", error)
            self.failures += 1
            self._dirty.update(range(self.max_batch))
            self._batch_costs = {}

    @property
    def _measures(self) -> bool:
        return self.length is None and not isinstance(self.drafter, NoDrafter)

    def _length(self, rows: int, tenant: str) -> DraftLength:
        """What decides how many tokens a tenant's rows draft, in calls of so many rows.

        What calls cost is known to all tenants; what drafts gained, of a tenant's own texts alone.
        """
        if self.length is not None:
            return self.length
        if rows not in self._lengths:
            self._lengths[rows] = Tenants(self._new_length(rows))
        return self._lengths[rows].of(tenant)

    def _new_length(self, rows: int) -> Callable[[], DraftLength]:
        costs: CallCosts | CostsByContext
        if rows == 1 and self._costs is not None:
            costs = self._costs
        elif self._measures and self._batch_costs:
            costs = call_costs(self._batch_costs, rows)
        else:  # nothing drafts, or measuring failed
            return lambda: FixedLength(0)
        return lambda: MeasuredLength(costs) if self._measures else FixedLength(0)
