"""Whether a process is still there: leftovers of a killed one may be removed."""

from __future__ import annotations

import os


def running(pid: int) -> bool:
    """Whether a process of that id exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
