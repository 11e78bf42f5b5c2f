"""Ray Serve's hook for choosing replicas, with our policy in it."""

from __future__ import annotations

from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from specplug.serving.cluster import fleet
from specplug.serving.cluster.requests import Forwarded
from specplug.serving.cluster.routing import preferred

METRICS = "metrics"
"""Under this name replicas report their metrics to Ray, which hands them to the routers."""


class PrefixRouter(RequestRouter):  # type: ignore[misc]  # Ray's classes are untyped
    """Requests with a prefix in common go to one replica, as long as its queue is not too long.

    Ray makes one in every process that calls the replicas: in each ingress.
    """

    def initialize_state(self, **kwargs: Any) -> None:
        """Take ``threshold`` from the deployment's ``request_router_kwargs``."""
        self._threshold: int = kwargs["threshold"]

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Take note of the replicas that there are now, and of what they last reported."""
        super().update_replicas(replicas)
        fleet.metrics = {
            replica.replica_id.unique_id: replica.routing_stats.get(METRICS, "")
            for replica in replicas
        }

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """The candidates by preference, each a rank of its own; Ray passes over full ones."""
        by_name = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        queues = {
            name: self.replica_queue_len_cache.get(replica.replica_id) or 0
            for name, replica in by_name.items()
        }
        request = None
        if pending_request is not None:
            request = next(
                (arg for arg in pending_request.args if isinstance(arg, Forwarded)), None
            )
            # Without this Ray would ask again at once, and again, while all replicas are full.
            pending_request.routing_context.should_backoff = True
        prefix = request.prefix if request is not None else None
        return [[by_name[name]] for name in preferred(queues, prefix, self._threshold)]
