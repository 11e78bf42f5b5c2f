"""The server on several machines: an application for Ray Serve.

``serve run specplug.serving.ray:app bundle=smol.bundle replicas=2``. docs/RAY.md tells the rest.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from dataclasses import replace
from typing import Any

from starlette.types import ASGIApp, Message

from specplug.batching import BatchDecoder
from specplug.serving import logs
from specplug.serving.app import create_app, pages, with_cors
from specplug.serving.cluster import fleet
from specplug.serving.cluster.arguments import Arguments
from specplug.serving.cluster.ingress import Ingress, ReplicaLostError
from specplug.serving.cluster.line import AT_RAY, RequestLine
from specplug.serving.cluster.replica import answer
from specplug.serving.cluster.requests import Forwarded
from specplug.serving.errors import ApiError
from specplug.serving.service import Service
from specplug.serving.settings import fingerprint
from specplug.types import MissingExtraError

try:
    import ray
    from ray import serve
    from ray.exceptions import RayActorError
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig
    from ray.serve.exceptions import (
        BackPressureError,
        DeploymentUnavailableError,
        ReplicaUnavailableError,
    )

    from specplug.serving.cluster.router import METRICS, PrefixRouter
except ImportError as error:
    raise MissingExtraError(
        f"Ray Serve is not installed ({error}): pip install 'specplug[ray]'"
    ) from error

_MOST_REQUESTS = 1 << 20  # that an ingress has at once; the limits that matter are on replicas


class Replica:
    """A decoder and its server, in a process of their own."""

    async def __init__(self, arguments: Arguments) -> None:  # type: ignore[misc]  # Ray awaits it
        logs.set_up()
        self._running = AsyncExitStack()  # first: __del__ runs after a failure, too
        decoder = BatchDecoder.from_bundle(
            arguments.bundle,
            max_batch=arguments.max_batch,
            prefix_cache_bytes=arguments.prefix_cache << 20,
            target_engine=arguments.target_engine,
            target_device=arguments.target_device,
            drafter=arguments.drafter,
            threads=max(1, math.ceil(arguments.cpus)),
        )
        self._service: Service | None = None
        self._running.callback(self._close, decoder)
        try:
            await self._start(arguments, decoder)
        except BaseException:
            await self._running.aclose()
            raise

    def _close(self, decoder: BatchDecoder) -> None:
        # A hung engine's decoder would not close; Ray ends the process anyway.
        if self._service is None or not self._service.hung:
            decoder.close()

    async def _start(self, arguments: Arguments, decoder: BatchDecoder) -> None:
        self._name = serve.get_replica_context().replica_id.unique_id
        # Names and pages are the ingress's to check; keys are checked here, too.
        settings = replace(arguments.server, allowed_hosts=("*",), cors_origins=())
        if settings.fingerprint is None:
            settings = replace(settings, fingerprint=fingerprint(arguments.bundle))
        self._app = create_app(settings, decoder)
        service: Service = self._app.state.service
        self._service = service
        await self._running.enter_async_context(self._app.router.lifespan_context(self._app))
        while not service.ready:  # Ray sends requests once this returns
            await self.check_health()
            await asyncio.sleep(0.05)

    async def answer(self, request: Forwarded) -> AsyncIterator[list[Message]]:
        """An empty list when the request is taken, then the answer's ASGI messages."""
        yield []
        async for messages in answer(self._app, request, self._name):
            yield messages

    async def check_health(self) -> None:
        """Ray calls this; a replica that raises is replaced."""
        if self._service is not None and (trouble := self._service.trouble) is not None:
            raise RuntimeError(trouble)

    async def record_routing_stats(self) -> dict[str, str]:
        """Ray calls this and hands the result to the routers, in every ingress."""
        return {METRICS: self._service.metrics.text().decode()} if self._service else {}

    async def __del__(self) -> None:
        """Ray awaits this once nothing runs any more."""
        await self._running.aclose()


class Entrance:
    """Where Ray's HTTP proxies send requests."""

    def __init__(self, replicas: serve.handle.DeploymentHandle, arguments: Arguments) -> None:
        if not arguments.allow_usage_stats:
            refuse_usage_stats()
        self._handle = replicas.options(stream=True, method_name="answer")
        self._arguments = arguments
        keys = arguments.server.keys
        self._line = None if keys is None else RequestLine(keys, arguments.server.max_waiting)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Ray calls this for the application."""
        arguments = self._arguments
        ingress = Ingress(
            self._call,
            lambda: fleet.metrics,
            retries=arguments.retries,
            prefix_characters=arguments.prefix_characters,
            settings=arguments.server,
            pages=pages(),
        )
        return with_cors(ingress, arguments.server)

    async def _call(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        answered = None
        try:
            async with (
                asyncio.timeout(self._arguments.queue_timeout),
                nullcontext() if self._line is None else self._line.turn(request),
            ):
                answered = self._handle.remote(request)
                await anext(answered)
            async for messages in answered:
                for message in messages:
                    yield message
        except (asyncio.CancelledError, GeneratorExit):
            if answered is not None:
                answered.cancel()
            raise
        except TimeoutError:
            if answered is not None:
                answered.cancel()
            raise ApiError(
                503,
                f"no replica took the request in {self._arguments.queue_timeout:g} seconds",
                retry_after=5,
            ) from None
        except BackPressureError:
            raise ApiError(
                429,
                f"{self._arguments.server.max_waiting} requests are waiting: ask again later",
                retry_after=1,
            ) from None
        except DeploymentUnavailableError as error:
            raise ApiError(503, "the replicas cannot be started", retry_after=30) from error
        except (RayActorError, ReplicaUnavailableError) as error:
            raise ReplicaLostError from error


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application; Ray Serve calls this with what the command or file gives.

    Raises:
        ValueError: arguments that are wrong, a line each.
    """
    given = Arguments.parse(arguments)
    _send_no_usage_stats()
    scaled = given.autoscaling
    replicas = serve.deployment(
        Replica,
        name="replica",
        num_replicas=given.replicas if scaled is None else None,
        autoscaling_config=scaled and AutoscalingConfig(
            min_replicas=scaled.min,
            max_replicas=scaled.max,
            target_ongoing_requests=scaled.target,
            upscale_delay_s=scaled.up_after,
            downscale_delay_s=scaled.down_after,
            metrics_interval_s=min(10, max(0.2, scaled.up_after / 3)),
            look_back_period_s=min(30, max(0.5, scaled.up_after)),
        ),
        # A replica has as many requests as it can run, and as many again so that none of its rows
        # is ever without one; the others wait in the ingress, for whichever replica is free first.
        max_ongoing_requests=2 * given.max_batch,
        # Ray knows no 0; with keys the ingress's own line bounds what waits.
        max_queued_requests=max(AT_RAY if given.server.keys else 1, given.server.max_waiting),
        max_constructor_retry_count=3,
        health_check_period_s=5,
        graceful_shutdown_timeout_s=given.server.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": given.cpus, "num_gpus": given.gpus},
        request_router_config=RequestRouterConfig(
            request_router_class=PrefixRouter,
            request_router_kwargs={"threshold": given.threshold},
            request_routing_stats_period_s=2,
        ),
    )  # fmt: skip
    entrance = serve.deployment(
        serve.ingress()(Entrance),
        name="ingress",
        num_replicas=given.ingresses,
        max_ongoing_requests=_MOST_REQUESTS,
        graceful_shutdown_timeout_s=given.server.shutdown_timeout,
        graceful_shutdown_wait_loop_s=0.5,
        ray_actor_options={"num_cpus": 0},
    )
    built: serve.Application = entrance.bind(replicas.bind(given), given)
    return built


def _send_no_usage_stats() -> None:
    """A cluster that this process starts is to send nothing to Ray's authors.

    Ray's releases send nothing from clusters of ``ray.init``; its nightly builds ask their user.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # With statistics off, clusters of ``ray start`` still send that they are off.
    os.environ.setdefault("RAY_USAGE_STATS_REPORT_URL", "http://127.0.0.1:9/")


def refuse_usage_stats() -> None:
    """Raise ``RuntimeError`` on a cluster that sends usage statistics."""
    kept = ray.experimental.internal_kv._internal_kv_get(b"CLUSTER_METADATA", namespace=b"cluster")
    if kept and "git_commit" in json.loads(kept):  # which Ray records for the statistics alone
        raise RuntimeError(
            "this Ray cluster sends usage statistics to Ray's authors: start it with "
            "RAY_USAGE_STATS_ENABLED=0, or pass allow_usage_stats=true"
        )
