"""The command line as a user meets it: a process of its own, both streams, an exit code."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

from tests_support import starter

_SHOWN = {"COLUMNS": "200", "NO_COLOR": "1"}
_READ_LATE = {*_SHOWN, "TERM", "PYTEST_CURRENT_TEST"}
"""Variables that nothing reads while it is imported."""


def specplug(
    *arguments: object,
    text: str | None = None,
    anew: Sequence[str] = (),
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``specplug``, with ``text`` on its stdin.

    Under an environment that may change what is imported, it imports all itself; or only
    packages that ``anew`` names, which are then those that read that environment.
    """
    own = {**os.environ, **_SHOWN, **environment}
    if not anew and _imported_under(own) != _imported_under(_starter()[1]):
        return run_anew(*arguments, text=text, **environment)
    started = Started(*arguments, text=text, anew=anew, **environment)
    out, err = started.communicate()
    return subprocess.CompletedProcess(arguments, started.wait(), out, err)


def run_anew(
    *arguments: object, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """The same by an interpreter of its own."""
    return subprocess.run(
        [sys.executable, "-m", "specplug", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=text,
        env=os.environ | _SHOWN | environment,
    )


class Started:
    """A process that runs ``specplug``.

    Args:
        arguments: of the command.
        text: on its stdin.
        most_bytes: that a file of its may have; None: whatever the disk has room for.
        anew: packages that it imports itself.
        environment: variables beside those of this process.
    """

    def __init__(
        self,
        *arguments: object,
        text: str | None = None,
        most_bytes: int | None = None,
        anew: Sequence[str] = (),
        **environment: str,
    ) -> None:
        asked = {
            "arguments": [str(argument) for argument in arguments],
            "environment": os.environ | _SHOWN | environment,
            "folder": os.getcwd(),
            "most_bytes": most_bytes,
            "anew": list(anew),
        }
        self._code: int | None = None
        self._told, told = socket.socketpair()
        (self._out, out), (self._err, err) = os.pipe(), os.pipe()
        with tempfile.TemporaryFile() as given:
            given.write((text or "").encode())
            given.seek(0)
            socket.send_fds(
                _starter()[0],
                [json.dumps(asked).encode()],
                [told.fileno(), given.fileno(), out, err],
            )
        told.close()
        os.close(out)
        os.close(err)
        self._pid = self._number()

    def _number(self) -> int:
        told = self._told.recv(8, socket.MSG_WAITALL)
        assert len(told) == 8, "the process that starts others has ended"
        return int.from_bytes(told, "little", signed=True)

    def poll(self) -> int | None:
        """The exit code, minus the number of the signal that ended it; None while it runs."""
        if self._code is None and select.select([self._told], [], [], 0)[0]:
            return self.wait()
        return self._code

    def wait(self) -> int:
        """The exit code, when there is one."""
        if self._code is None:
            self._code = self._number()
            self._told.close()
        return self._code

    def communicate(self) -> tuple[str, str]:
        """All it says on both streams, once it has ended."""
        said: list[str] = []

        def read() -> None:
            with open(self._err, errors="replace") as stream:
                said.append(stream.read())

        thread = threading.Thread(target=read)
        thread.start()
        with open(self._out) as stream:
            out = stream.read()
        thread.join()
        self.wait()
        return out, said[0]

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self._pid, number)


def _imported_under(environment: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in _READ_LATE}


@functools.cache
def _starter() -> tuple[socket.socket, dict[str, str]]:
    """Where the process that starts others is asked, and the environment that it began with."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ)
    with theirs:
        process = subprocess.Popen(
            # -P: else the modules beside it would hide those of the packages.
            [sys.executable, "-P", starter.__file__, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours, environment
