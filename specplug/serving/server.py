"""The process: a socket, signals, and an end that drops nobody."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import uvicorn
from fastapi import FastAPI

from specplug.hangup import on_hangup
from specplug.serving.connections import sweep, with_limits
from specplug.serving.service import LAST_STEP, Service

_log = logging.getLogger(__name__)

_LAST_WRITES = 5  # seconds for what is written already to leave, once all is answered
_MARGIN = 5.0  # seconds for everything else that ends: the log, traces, threads of the pool
HUNG = 70
"""Exit code of a process that ended although something in it did not: ``EX_SOFTWARE``."""
_SWEPT = 5  # ticks between two looks at the connections: half a second
_OTHER_FILES = 128  # that a process has open beside its connections
_SEND_BUFFER = 1 << 17  # bytes of a connection that wait in the kernel; it would take megabytes
_USER_TIMEOUT = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


def bind(host: str, port: int, send_timeout: float) -> socket.socket:
    """A socket at an address, which the server has yet to listen at.

    Connections whose peer takes nothing will be broken, later than the application gives them up
    after ``send_timeout`` seconds: what waits in the kernel would keep them for ever.

    Raises:
        OSError: the address cannot be had.
    """
    made = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if _USER_TIMEOUT is not None:
            made.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, int(2000 * send_timeout))
        made.bind((host, port))
    except OSError as error:
        made.close()
        raise OSError(error.errno, f"cannot listen at {host}:{port}: {error.strerror}") from error
    return made


class Server(uvicorn.Server):
    """Runs an application until a signal comes.

    The first one has it take no more requests and finish those it has, within the settings'
    ``shutdown_timeout``; the second one ends the process at once. SIGHUP is such a signal, too,
    unless it is ignored, as under nohup.

    Args:
        app: of :func:`specplug.serving.app.create_app`.
        on_start: called when connections are taken.
        owns_process: end the process with exit code ``HUNG`` if the engine, or anything else, has
            not let go 15 seconds after ``shutdown_timeout``.
    """

    def __init__(
        self,
        app: FastAPI,
        on_start: Callable[[], None] = lambda: None,
        *,
        owns_process: bool = False,
    ) -> None:
        self._service: Service = app.state.service
        settings = self._service.settings
        super().__init__(
            uvicorn.Config(
                app,
                http=with_limits(settings),  # of h11, which the extra installs
                loop="asyncio",
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=math.ceil(settings.idle_timeout),
                timeout_graceful_shutdown=_LAST_WRITES,
            )
        )
        self._on_start = on_start
        self._owns_process = owns_process
        self._drained_by: float | None = None
        self._signalled = threading.Event()

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Until a signal comes; see the class."""
        if self._owns_process:
            # Before any signal: a handler must not start threads.
            threading.Thread(target=self._watch, name="specplug-watch", daemon=True).start()
            # Collections pause everybody, for 0.3 seconds with a model and its libraries to go
            # through; what is there now stays until the end.
            gc.collect()
            gc.freeze()
            on_hangup(self.handle_exit)
        super().run(sockets)
        if self._owns_process and self._service.hung:
            _end("the engine")

    def _watch(self) -> None:
        self._signalled.wait()
        time.sleep(self._service.settings.shutdown_timeout + _LAST_WRITES + LAST_STEP + _MARGIN)
        _end("something")

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, and say so."""
        _check_files(self._service.settings.max_connections)
        await super().startup(sockets)
        self._on_start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Uvicorn's own would close the connections' listener at once, and refuse without words."""
        if self._drained_by is not None:
            os._exit(128 + sig)
        timeout = self._service.settings.shutdown_timeout
        self._drained_by = time.monotonic() + timeout
        self._service.drain()
        self._signalled.set()
        _log.info("stopping: %d requests are being answered", self._service.in_flight)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to stop."""
        if counter % _SWEPT == 0:
            sweep(self.server_state.connections, asyncio.get_running_loop().time())
        if self._drained_by is not None:
            if not self._service.in_flight:
                return True
            if time.monotonic() > self._drained_by:
                _log.warning("stopping: %d requests are given up", self._service.in_flight)
                self._service.abort()
                return True
        return await super().on_tick(counter)


def _check_files(connections: int) -> None:
    """Warn if the process may not have as many files open as connections need."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most != resource.RLIM_INFINITY and most < connections + _OTHER_FILES:
        _log.warning(
            "%d connections need more than the %d files that this process may open: "
            "ulimit -n %d, or a lower --max-connections",
            connections, most, connections + _OTHER_FILES,
        )  # fmt: skip


def _end(what: str) -> NoReturn:
    """End the process, whatever runs in it."""
    _log.error("stopping: %s did not end in time: exit code %d", what, HUNG)
    logging.shutdown()
    os._exit(HUNG)
