"""Counters in Triton's own metrics, under the names that vLLM gives them."""

from __future__ import annotations

from typing import Any, Self

from specplug.generation import Generation

_COUNTERS = {
    "prompt_tokens_total": "Prompt tokens of ended answers.",
    "generation_tokens_total": "New tokens.",
    "spec_decode_num_drafts_total": "Rounds in which anything was drafted.",
    "spec_decode_num_draft_tokens_total": "Drafted tokens.",
    "spec_decode_num_accepted_tokens_total": "Accepted ones.",
    "spec_decode_num_accepted_tokens_per_pos_total": "Accepted ones by place in the draft.",
}
_BY_PLACE = "spec_decode_num_accepted_tokens_per_pos_total"


class Metrics:
    """Of one model.

    Args:
        families: Triton's metric families by name; none: nothing is counted.
        labels: of every metric.
    """

    def __init__(self, families: dict[str, Any], labels: dict[str, str]) -> None:
        self._families, self._labels = families, labels
        self._metrics: dict[tuple[str, str], Any] = {}

    @classmethod
    def of(cls, pb_utils: Any, model: str, version: str) -> Self:
        """Registered with the server, if it keeps metrics."""
        families: dict[str, Any] = {}
        try:
            for name, text in _COUNTERS.items():
                families[name] = pb_utils.MetricFamily(
                    name=f"specplug:{name}", description=text, kind=pb_utils.MetricFamily.COUNTER
                )
        except (AttributeError, pb_utils.TritonModelException) as error:
            pb_utils.Logger.log_info(f"specplug: no metrics here: {error}")
            families = {}
        return cls(families, {"model": model, "version": version})

    def count(self, generation: Generation) -> None:
        """An answer has ended."""
        stats = generation.stats
        self._add("prompt_tokens_total", stats.prompt_tokens)
        self._add("generation_tokens_total", stats.new_tokens)
        self._add("spec_decode_num_drafts_total", sum(map(bool, stats.drafted_per_round)))
        self._add("spec_decode_num_draft_tokens_total", stats.drafted)
        self._add("spec_decode_num_accepted_tokens_total", stats.accepted)
        for place in range(max(stats.accepted_per_round, default=0)):
            reached = sum(accepted > place for accepted in stats.accepted_per_round)
            self._add(_BY_PLACE, reached, str(place))

    def _add(self, name: str, count: int, place: str = "") -> None:
        if not self._families or not count:
            return
        if (name, place) not in self._metrics:
            labels = self._labels | ({"position": place} if place else {})
            self._metrics[name, place] = self._families[name].Metric(labels=labels)
        self._metrics[name, place].increment(count)
