"""Matrices of a checkpoint in 8 bits, under the names of the compressed-tensors format.

``NAME`` is i8[out, in], ``NAME_scale`` f32[out, 1]: a row's largest value is 127 steps, as in the
precision w8a8, whose export therefore has the very integers that are stored here.
:mod:`specplug.export.quantized` reads them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

CONFIG = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"},
        }
    },
}
"""A configuration's ``quantization_config``."""
_SCALE, _LEVELS = "_scale", 127


def to_eight_bits(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors, matrices of floats in 8 bits."""
    made = {}
    for name, tensor in tensors.items():
        made[name] = tensor
        if tensor.ndim == 2 and tensor.is_floating_point():
            values = tensor.float()
            scale = values.abs().amax(1, keepdim=True) / _LEVELS
            made[name] = (values / scale.where(scale > 0, 1)).round().to(torch.int8)
            made[name + _SCALE] = scale
    return made
