"""Our operators for ONNX Runtime, if they were built: faster w8a8, bit for bit the same.

Graphs define these operators themselves, as functions of ONNX Runtime's own, so nothing needs the
library. It is made from ``engines/native/ops`` (``scripts/native ops`` in a checkout) and looked
for in the Python environment's ``lib``; the variable SPECPLUG_OPS names another file, or ``off``.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from specplug.types import EngineError

VARIABLE = "SPECPLUG_OPS"
_FILE = "libspecplug_ops.so"


def native_ops() -> Path | None:
    """The library to register with a session; None: there is none, or not for this CPU.

    Raises:
        EngineError: SPECPLUG_OPS names a file that cannot be loaded.
    """
    wanted = os.environ.get(VARIABLE)
    if wanted == "off":
        return None
    path = Path(wanted) if wanted else Path(sys.prefix) / "lib" / _FILE
    if not wanted and not path.exists():
        return None
    try:
        supported = ctypes.CDLL(str(path.absolute())).specplug_ops_supported()
    except (OSError, AttributeError) as error:
        raise EngineError(
            f"{path} is not a library of specplug's operators ({error}): build it with "
            f"scripts/native ops, or run without it by {VARIABLE}=off"
        ) from error
    return path.absolute() if supported else None
