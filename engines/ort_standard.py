"""ONNX Runtime over graphs of the ``standard`` dialect: masks instead of lengths, and trees."""

from __future__ import annotations

import numpy as np

from specplug.engines.ort import Array, OrtEngine
from specplug.engines.trees import MASK, fill_mask, mask_window, positions
from specplug.types import Step


class OrtStandardEngine(OrtEngine):
    """A ``standard``-dialect graph and its cache; see :class:`OrtEngine`."""

    def _takes_trees(self) -> bool:
        return True

    def _takes_blocks(self) -> bool:
        return True

    def _new_inputs(self, batch: int, width: int, tree: bool) -> dict[str, Array]:
        shape = (batch, 1, width, self.cache.entries.shape[4])
        return {
            "position_ids": np.zeros((batch, width), dtype=np.int64),
            "write_indices": np.zeros(batch, dtype=np.int64),
            **{name: np.zeros(shape, dtype=np.float32) for name in self._masks()},
        }

    def _fill(self, inputs: dict[str, Array], step: Step) -> None:
        inputs["position_ids"][...] = positions(step)
        inputs["write_indices"][...] = step.past
        for name in self._masks():
            fill_mask(inputs[name], step, mask_window(name))

    def _masks(self) -> list[str]:
        return [name for name in self._inputs if name.startswith(MASK)]
