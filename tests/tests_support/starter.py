"""A process that starts those of the command line, with their imports done: all that an export
needs takes longer to import than most commands take to run.

As a script it imports that once, and forks for every command that :mod:`tests_support.command`
asks it for.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
import threading
from typing import Any

PRELOADED = (
    "rich.progress",
    "rich.table",
    "specplug.distilling.distill",
    "specplug.engines.ort",
    "specplug.engines.ort_concat",
    "specplug.engines.ort_standard",
    "specplug.engines.pytorch",
    "specplug.export",
    "specplug.serving.app",
    "specplug.verification",
    "transformers.models.llama.modeling_llama",
    "typer",
)
"""Not the command's own modules, which look at the terminal when they are imported."""
MOST = 1 << 17
"""Bytes of a request, of which the environment is most."""


def write_number(descriptor: int, number: int) -> None:
    """Tell a process id, or an exit code."""
    os.write(descriptor, number.to_bytes(8, "little", signed=True))


def _serve(requests: socket.socket) -> None:
    """Returns in processes that were asked for, and nowhere else."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that watch
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, MOST, 4)
        if not message:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            return _watch(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _watch(asked: dict[str, Any], told: int, *streams: int) -> None:
    """Tell the id and the exit code of a child, in which this returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if child == 0:
        os.close(told)
        return _become(asked, streams)
    for stream in streams:
        os.close(stream)
    write_number(told, child)
    write_number(told, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os._exit(0)


def _become(asked: dict[str, Any], streams: tuple[int, ...]) -> None:
    for standard, stream in enumerate(streams):
        os.dup2(stream, standard)
        os.close(stream)
    # As an interpreter makes them at its start: those of this one remember other files.
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
    # Shells start background jobs, the tests perhaps, with SIGINT ignored; a user's is not.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if asked["most_bytes"] is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (asked["most_bytes"],) * 2)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    for name in list(sys.modules):
        if name.partition(".")[0] in asked["anew"]:
            del sys.modules[name]
    sys.argv = ["specplug", *asked["arguments"]]


if __name__ == "__main__":
    for _name in PRELOADED:
        importlib.import_module(_name)
    gc.collect()
    gc.freeze()  # collections of the forked processes need not look at all that
    _serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        runpy.run_module("specplug", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        # What an interpreter does at its end, but for freeing all that was imported, one by one.
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code or 0)
