"""What bounds an export's memory: weights read when used, graphs run in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from specplug.engines.ort import OrtEngine
from specplug.export import graphs
from specplug.export.lazy import LazyTensor
from specplug.export.piecewise import PiecewiseEngine
from specplug.export.source import open_source
from specplug.opening import EngineOptions
from specplug.types import ExportError, Step

ROWS, COLUMNS = 6, 4

OPERATIONS = {  # what checkpoints go through: renamed, turned, cut, joined, converted
    "transpose": lambda a, b: a.T.contiguous().T,
    "reshape": lambda a, b: a.reshape(2, -1).view(ROWS, COLUMNS),
    "slice": lambda a, b: torch.cat([a[2:], b[:2]]),
    "chunk": lambda a, b: torch.cat(a.chunk(3)[::-1]),
    "split": lambda a, b: torch.cat([part + 1 for part in b.split([2, 4])]),
    "stack": lambda a, b: torch.stack([a, b])[1],
    "permute": lambda a, b: a.view(2, 3, COLUMNS).permute(1, 0, 2).reshape(ROWS, COLUMNS),
    "convert": lambda a, b: a.to(torch.float16).to(torch.float32),
    "add": lambda a, b: a + 2 * b,
    "clone": lambda a, b: b.clone(),
    "index": lambda a, b: a[torch.tensor([5, 4, 3, 2, 1, 0])],
}


@settings(deadline=None)
@given(
    steps=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=6),
    seed=st.integers(0, 1000),
)
def test_recorded_operations_give_the_same_values(steps: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain = [torch.randn(ROWS, COLUMNS, generator=generator) for _ in "ab"]
    lazy = [LazyTensor(tensor.to("meta"), tensor.clone) for tensor in plain]
    for step in steps:
        plain = [OPERATIONS[step](*plain), plain[0]]
        lazy = [OPERATIONS[step](*lazy), lazy[0]]
        assert lazy[0].shape == plain[0].shape
    np.testing.assert_array_equal(lazy[0].cpu().numpy(), plain[0].numpy())


def test_nothing_is_read_before_it_is_used() -> None:
    reads = []

    def read() -> torch.Tensor:
        reads.append(1)
        return torch.arange(24.0).view(ROWS, COLUMNS)

    lazy = LazyTensor(torch.empty(ROWS, COLUMNS, device="meta"), read)
    turned = torch.nn.Parameter(torch.cat([lazy, lazy]).T.to(torch.float16)[1:])
    assert turned.shape == (COLUMNS - 1, 2 * ROWS)
    assert turned.dtype == torch.float16
    assert not reads
    assert lazy.numpy()[1, 0] == 4
    assert reads == [1]


def test_a_layer_over_lazy_weights_computes(tiny_source: Path) -> None:
    source = open_source(tiny_source)
    assert all(isinstance(tensor, LazyTensor) for tensor in source.weights.values())
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        found = source.reference()(tokens).logits
        source.weights.update({name: t.cpu() for name, t in source.weights.items()})
        expected = source.reference()(tokens).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("piece_bytes", [1, 40_000, 1 << 30])
def test_pieces_compute_what_the_graph_does(
    tiny_source: Path, tmp_path: Path, piece_bytes: int
) -> None:
    graph = graphs.build_fp32(open_source(tiny_source))
    folder = tmp_path / "graph"
    graphs.save(graph, folder)
    known = {"cache": graphs.cache_layout(graph), "vocab_size": 260, "max_length": 1000}
    whole = OrtEngine(folder / graphs.GRAPH, min_width=1, options=EngineOptions(), **known)
    pieces = PiecewiseEngine(folder, piece_bytes=piece_bytes, **known)
    random = np.random.default_rng(0)
    for past, width, scores_from in ((0, 24, 0), (24, 8, 7), (28, 1, 0), (3, 5, 2)):  # rolls back
        tokens = random.integers(0, 260, (1, width))
        step = Step(tokens=tokens, past=np.array([past]), scores_from=scores_from)
        expected = whole.forward(step).logits()
        np.testing.assert_allclose(pieces.forward(step).logits(), expected, atol=1e-4)
    written = sorted(folder.glob("piece-*.onnx"))
    assert (len(written) == 1) == (piece_bytes == 1 << 30)
    largest = 1200 * 16 * 4  # cosines and sines of one attention node
    assert max(map(_weight_bytes, written)) <= max(piece_bytes, largest)
    whole.close()
    pieces.close()


def _weight_bytes(path: Path) -> int:
    graph = onnx.load(path, load_external_data=False).graph
    return sum(int(np.prod(tensor.dims)) * 4 for tensor in graph.initializer)


def test_missing_and_misshapen_tensors_are_named(tiny_source: Path, tmp_path: Path) -> None:
    source = open_source(tiny_source)
    name = "model.layers.1.mlp.up_proj.weight"
    shape = source.weights[name].shape
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / file).symlink_to(tiny_source / file)
    tensors = {key: tensor.cpu().contiguous() for key, tensor in source.weights.items()}
    tensors[name] = torch.zeros(3, 3)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=rf"mismatched.*{name}"):
        open_source(tmp_path)
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ExportError, match=f"missing {name}"):
        open_source(tmp_path)
    assert shape == (96, 64)
