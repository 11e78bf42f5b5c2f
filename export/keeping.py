"""Layers that stay in fp32 whatever the precision: ``--keep-fp32``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from specplug.types import ExportError

if TYPE_CHECKING:
    from specplug.export.passes.editing import Linear

Keep = Callable[["Linear"], bool]
"""Whether a linear layer keeps its fp32 weights."""

_NAMED_IN_ERROR = 4


def keep_none(layer: Linear) -> bool:
    """Every layer may be rounded."""
    return False


class KeepMatching:
    """Keep the layers with a weight whose name matches a regular expression somewhere.

    Args:
        pattern: searched in the names that :func:`weight_names` gives.

    Raises:
        ExportError: not a regular expression.
    """

    def __init__(self, pattern: str) -> None:
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise ExportError(
                f"--keep-fp32 {pattern!r} is no regular expression: {error}"
            ) from error
        self._seen: list[str] = []
        self._matched = False

    def __call__(self, layer: Linear) -> bool:
        """Whether any weight of the layer matches."""
        names = weight_names(layer)
        self._seen += names
        found = any(self._pattern.search(name) for name in names)
        self._matched |= found
        return found

    def check_matched(self) -> None:
        """Refuse a pattern that no layer matched, once all have been asked.

        Raises:
            ExportError: naming some layers.
        """
        if not self._matched:
            some = [*self._seen[:_NAMED_IN_ERROR], "…", *self._seen[-1:]]
            raise ExportError(
                f"--keep-fp32 {self._pattern.pattern!r} matches no layer: there are "
                f"{', '.join(some)}"
            )


def weight_names(layer: Linear) -> list[str]:
    """The source's names of a layer's weights; several for a packed one, or a tied LM head."""
    names = [part.removesuffix("_t") for part in layer.name.split("__") if ".weight" in part]
    names = names or [layer.name]
    for name in names[:]:
        if "gate_up_proj" in name:
            names += [name.replace("gate_up_proj", part) for part in ("gate_proj", "up_proj")]
    if layer.is_head and not any("lm_head" in name for name in names):
        names.append("lm_head.weight")
    return names
