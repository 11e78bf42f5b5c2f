"""A Ray cluster of this machine's own, in processes of its own, with our application on it.

As a script it is what starts the cluster, and ends it when its standard input does.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

_MARK = "SPECPLUG_TEST_CLUSTER"  # in the environment of all of the cluster's processes
_MEGABYTE = 1 << 20


class Cluster:
    """Starts Ray, and is where requests go; ``address`` is that of Ray's HTTP proxy."""

    def __init__(self, **arguments: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        self._mark = uuid.uuid4().hex
        self._home = tempfile.mkdtemp(prefix="ray")  # short: paths of sockets have a limit
        environment = os.environ | {
            _MARK: self._mark,
            "HOME": self._home,  # Ray keeps a token there
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        with (Path(self._home) / "driver.log").open("wb") as log:
            self._driver = subprocess.Popen(
                [sys.executable, __file__, str(port), self._home],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
            )
        self.deploy(**arguments)

    def deploy(self, **arguments: Any) -> None:
        """Have the application run with these arguments, in place of those it had.

        ``route_prefix`` is Ray's own.
        """
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps(arguments) + "\n")
        self._driver.stdin.flush()
        for line in self._driver.stdout:  # Ray may have something to say, too
            if line == "deployed\n":
                return
        raise RuntimeError(self.log())

    def log(self) -> str:
        """What the driver had to say."""
        return (Path(self._home) / "driver.log").read_text()[-5000:]

    def processes(self, title: str = "") -> list[int]:
        """Process ids of the cluster's processes, but for the driver, whose title begins so."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                environment = (process / "environ").read_bytes()
                command = (process / "cmdline").read_bytes()
            except OSError:
                continue  # it has ended, or is not ours
            marked = f"{_MARK}={self._mark}".encode() in environment
            if (
                marked
                and int(process.name) != self._driver.pid
                and command.startswith(title.encode())
            ):
                found.append(int(process.name))
        return found

    @property
    def replicas(self) -> list[int]:
        """Process ids of the replicas."""
        return self.processes("ray::ServeReplica:specplug:replica")

    def close(self) -> None:
        """End everything that was started."""
        assert self._driver.stdin is not None
        self._driver.stdin.close()
        try:
            self._driver.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self._driver.kill()
            self._driver.wait()
        for process in self.processes():
            os.kill(process, 9)
        if self._driver.stdout is not None:
            self._driver.stdout.close()
        shutil.rmtree(self._home, ignore_errors=True)


def main(port: int, folder: str) -> None:
    """Deploy what standard input says, a line of arguments at a time."""
    import ray
    from ray import serve

    from specplug.serving.ray import app

    for line in sys.stdin:
        arguments = json.loads(line)
        prefix = arguments.pop("route_prefix", "/")
        application = app(arguments)
        if not ray.is_initialized():
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                object_store_memory=80 * _MEGABYTE,
                _memory=1000 * _MEGABYTE,
                _temp_dir=folder,
            )
            serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(application, name="specplug", route_prefix=prefix)
        print("deployed", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
