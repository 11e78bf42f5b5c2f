"""Write ``gptq.safetensors``: matrices that AutoGPTQ packed, and what it multiplies by.

Run it with the path of AutoGPTQ 0.7.1's ``nn_modules/qlinear/qlinear_cuda.py`` (its wheel need not
be installed) when cases are added.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

SIZE, GROUP = 64, 32
CASES = [(bits, sym, order) for bits in (2, 3, 4, 8) for sym, order in ((0, 1), (1, 0))]


def main() -> None:
    """Write the file beside this one."""
    spec = importlib.util.spec_from_file_location("qlinear", sys.argv[1])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    made = {}
    for bits, sym, order in CASES:
        layer = module.QuantLinear(bits, GROUP, SIZE, SIZE, False, weight_dtype=torch.float32)
        linear = torch.nn.Linear(SIZE, SIZE, bias=False)
        groups = SIZE // GROUP
        scales = torch.rand(SIZE, groups) * 0.1 + 0.05
        highest = 2**bits - 1
        zeros = torch.randint(1, highest + 1, (SIZE, groups)).float()
        if sym:
            zeros = torch.full((SIZE, groups), 2.0 ** (bits - 1))
        g_idx = torch.arange(SIZE, dtype=torch.int32) // GROUP
        if order:
            g_idx = g_idx[torch.randperm(SIZE)]
        codes = torch.randint(0, highest + 1, (SIZE, SIZE)).float()
        columns = g_idx.long()
        linear.weight.data = (codes - zeros[:, columns]) * scales[:, columns]
        layer.pack(linear, scales, zeros.clone(), g_idx)
        name = f"{bits}.{sym}.{order}"
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            made[f"{name}.{part}"] = getattr(layer, part).contiguous()
        made[f"{name}.product"] = layer(torch.eye(SIZE)).T.contiguous()
    save_file(made, Path(__file__).parent / "gptq.safetensors")


if __name__ == "__main__":
    main()
