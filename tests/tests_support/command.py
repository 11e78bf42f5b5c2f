"""The command line as a user meets it: a real process."""

from __future__ import annotations

import os
import subprocess
import sys


def specplug(
    *arguments: object, text: str | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``specplug``, with ``text`` on its stdin."""
    return subprocess.run(
        [sys.executable, "-m", "specplug", *map(str, arguments)],
        capture_output=True,
        text=True,
        input=text,
        env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"} | environment,
    )
