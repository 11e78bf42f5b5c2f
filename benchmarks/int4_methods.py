"""Ways to round weights to 4 bits, compared at (nearly) equal size on quality against the source.

.venv/bin/python benchmarks/int4_methods.py SOURCE [--calibration-tokens 4096]

Blocks of 32, fp32 scales, an 8-bit LM head rounded to the nearest, everything else as in the
precision int4. A source that was itself stored in 4 bits flatters any method that finds its grid
again, so each method is measured twice: on the source, and on the source with uniform noise of
one step of each block added to its weights, against that noisy model. GPTQ sees every second
prompt of specbench-dev; quality is measured on the built-in text and the other prompts.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnxruntime.quantization.matmul_nbits_quantizer import (
    HQQWeightOnlyQuantConfig,
    HQQWeightOnlyQuantizer,
)
from onnxruntime.quantization.neural_compressor.weight_only import gptq as library_gptq

from measuring import workload, write_result
from specplug.export import graphs, measuring, quality_text
from specplug.export.blocks import BLOCK_SIZE, Blocks, k_quant, nearest, split_blocks
from specplug.export.keeping import weight_names
from specplug.export.passes import PadAttention, QuantizeNBits
from specplug.export.passes.editing import linear_layers
from specplug.export.source import Source, open_source
from specplug.export.tokenizers import encoder

Hessians = dict[str, torch.Tensor]
Method = Callable[[np.ndarray, torch.Tensor], Blocks]
"""From f32[K, N] and the sum of its inputs' outer products f32[K, K]."""


def affine(weight: np.ndarray, bits: int = 4) -> Blocks:
    """Rounding to nearest between the least and the largest value of a block."""
    blocks = split_blocks(weight)
    low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
    scales = np.maximum((high - low) / (2**bits - 1), 1e-12).astype(np.float32)
    return on_grid(blocks, scales, np.rint(-low / scales), bits)


def on_grid(blocks: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int = 4) -> Blocks:
    top = 2**bits - 1
    zeros = np.clip(zeros, 0, top)
    integers = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, top)
    return Blocks(bits, integers.astype(np.uint8), scales, zeros.astype(np.uint8))


def hqq(weight: np.ndarray) -> Blocks:
    """ONNX Runtime's HQQ; its float zero points rounded, since the kernel is slow with those."""
    quantizer = HQQWeightOnlyQuantizer(HQQWeightOnlyQuantConfig(block_size=BLOCK_SIZE, bits=4))
    rows = torch.from_numpy(np.ascontiguousarray(weight.T))
    _, scales, zeros = quantizer.quantize_internal(rows, bits=4, group_size=BLOCK_SIZE)
    return on_grid(split_blocks(weight), scales.numpy(), np.rint(zeros.numpy()))


def gptq_of_library(weight: np.ndarray, hessian: torch.Tensor) -> Blocks:
    """ONNX Runtime's GPTQ, which returns values: their blocks are found anew, as it does itself."""
    values = library_gptq(
        weight.copy(), hessian.numpy().copy(), num_bits=4, group_size=BLOCK_SIZE, scheme="asym"
    )
    return affine(values.astype(np.float32))


def gptq(
    weight: np.ndarray, hessian: torch.Tensor, grid: Callable[[np.ndarray, int], Blocks]
) -> Blocks:
    """GPTQ (arXiv:2210.17323, algorithm 1): rounding input by input, errors passed on.

    The grid of 32 inputs is set by ``grid`` when their turn comes, and kept.
    """
    inner, outer = weight.shape
    rest = torch.from_numpy(weight.copy())
    hessian = hessian.double().clone()
    diagonal = hessian.diagonal()
    diagonal += 0.01 * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    made = []
    for start in range(0, inner, BLOCK_SIZE):
        stop = start + BLOCK_SIZE
        block, own = rest[start:stop], factor[start:stop, start:stop]
        set_by = grid(block.numpy(), 4)
        scales = torch.from_numpy(np.where(set_by.scales == 0, 1, set_by.scales)[:, 0])
        zeros = torch.full((outer,), 8.0)
        if set_by.zero_points is not None:
            zeros = torch.from_numpy(set_by.zero_points[:, 0].astype(np.float32))
        integers, errors = torch.empty_like(block), torch.empty_like(block)
        for i in range(BLOCK_SIZE):
            integers[i] = torch.clamp(torch.round(block[i] / scales) + zeros, 0, 15)
            errors[i] = (block[i] - (integers[i] - zeros) * scales) / own[i, i]
            block[i + 1 :] -= own[i, i + 1 :, None] * errors[i]
        rest[stop:] -= factor[start:stop, stop:].T @ errors
        made.append((integers.T.numpy().astype(np.uint8), scales.numpy(), zeros.numpy()))
    integers, scales, zeros = (np.stack(part, axis=1) for part in zip(*made, strict=True))
    return Blocks(4, integers, scales, zeros.astype(np.uint8))


METHODS: dict[str, Method] = {
    "nearest, symmetric": lambda weight, _: nearest(weight, 4),
    "nearest, with zero points": lambda weight, _: affine(weight),
    "k-quant": lambda weight, _: k_quant(weight, 4),
    "HQQ, zero points rounded": lambda weight, _: hqq(weight),
    "GPTQ of ONNX Runtime": gptq_of_library,
    "GPTQ on symmetric blocks": lambda weight, hessian: gptq(weight, hessian, nearest),
    "GPTQ on blocks with zero points": lambda weight, hessian: gptq(weight, hessian, affine),
    "GPTQ on k-quant's blocks": lambda weight, hessian: gptq(weight, hessian, k_quant),
}


def add_noise(source: Source) -> None:
    """Take the weights off the grid of the file: uniform noise of one 4-bit step of each block."""
    generator = torch.Generator().manual_seed(0)
    for name, weight in source.weights.items():
        if weight.ndim == 2 and "embed" not in name and "lm_head" not in name:
            blocks = weight.reshape(-1, BLOCK_SIZE)
            step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
            noise = (torch.rand(blocks.shape, generator=generator) - 0.5) * step
            source.weights[name] = (blocks + noise).reshape(weight.shape)


def collect_hessians(model: Any, prompts: list[list[int]]) -> Hessians:
    """The sums of outer products of every linear layer's inputs, by the weight's name."""
    hessians: Hessians = {}

    def watch(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor]) -> None:
            rows = inputs[0].flatten(0, -2)
            hessians[name] = hessians.get(name, torch.zeros(())) + rows.T @ rows

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "lm_head":
            module.register_forward_pre_hook(watch(f"{name}.weight"))
    with torch.no_grad():
        for tokens in prompts:
            model(torch.tensor([tokens]))
    return hessians


def compare(source: Source, calibration_tokens: int, work: Path) -> dict[str, Any]:
    encode = encoder(source.tokenizer)
    prompts = [line["prompt"] for line in workload("specbench-dev")]
    text = work / "text.txt"
    text.write_text("\n\n".join([quality_text._built_in(), *prompts[1::2]]))
    sample = quality_text.take_sample(encode, source.config.vocab_size, 2048, text)
    reference = measuring.write_reference(source.reference(), sample, work / "reference.f32")
    seen, left = [], calibration_tokens
    for prompt in prompts[::2]:
        seen.append(encode(prompt)[: min(512, left)])
        left -= len(seen[-1])
        if not left:
            break
    logging.getLogger().setLevel(logging.WARNING)  # ONNX Runtime's quantizer set it to INFO
    started = time.perf_counter()
    hessians = collect_hessians(source.reference(), seen)
    print(f"calibrated in {time.perf_counter() - started:.0f} s", flush=True)
    graphs.save(graphs.build_fp32(source), work / "fp32")
    results = {}
    for name, method in METHODS.items():
        graph = graphs.load(work / "fp32")
        names = [weight_names(layer) for layer in linear_layers(graph.graph)]
        inputs = iter([next((hessians[n] for n in some if n in hessians), None) for some in names])

        def rounding(weight: np.ndarray, bits: int) -> Blocks:
            seen_by = next(inputs)  # noqa: B023  # used within this turn of the loop
            return nearest(weight, 8) if bits == 8 else method(weight, seen_by)  # noqa: B023

        started = time.perf_counter()
        QuantizeNBits(bits=4, rounding=rounding)(graph)
        seconds = time.perf_counter() - started
        PadAttention()(graph)
        layout = graphs.cache_layout(graph)
        folder = work / f"method{len(results)}"
        graphs.save(graph, folder)
        engine = measuring.open_graph(folder / graphs.GRAPH, layout, source.config.vocab_size, 4096)
        quality = measuring.measure_quality(engine, reference)
        results[name] = {
            "top1_agreement": quality.top1_agreement,
            "mean_kl": quality.mean_kl,
            "perplexity_ratio": quality.perplexity_ratio,
            "min_width": measuring.measure_min_width(engine, sample.tokens),
            "megabytes": sum(path.stat().st_size for path in folder.iterdir()) / 1e6,
            "rounding_seconds": seconds,
        }
        engine.close()
        print(
            f"{name}: top-1 {quality.top1_agreement:.3f}, KL {quality.mean_kl:.4f}, "
            f"perplexity x{quality.perplexity_ratio:.4f}, {seconds:.0f} s",
            flush=True,
        )
    return {
        "tokens": len(sample.tokens),
        "calibration_tokens": sum(map(len, seen)),
        "source_perplexity": quality.source_perplexity,
        "methods": results,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--calibration-tokens", type=int, default=4096)
    arguments = parser.parse_args()
    results = {}
    for kind in ("as stored", "with noise"):
        source = open_source(arguments.source)
        if kind == "with noise":
            add_noise(source)
        print(kind, flush=True)
        with tempfile.TemporaryDirectory() as work:
            results[kind] = compare(source, arguments.calibration_tokens, Path(work))
    print(write_result("int4_methods", {"source": arguments.source.name, "sources": results}))


if __name__ == "__main__":
    main()
