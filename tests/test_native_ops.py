"""The native operators against the graphs' own definitions of them: the same, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specplug import SpeculativeDecoder, Step
from specplug.engines.native_ops import VARIABLE, native_ops
from specplug.engines.ort_session import open_session
from specplug.export.passes import QuantizeW8A8
from specplug.opening import EngineOptions
from specplug.types import EngineError
from tests_support import native
from tests_support.sketch import FLOAT, Sketch


@pytest.fixture(scope="session")
def library() -> Path:
    """Built from the sources as they are now; skips where that cannot be done."""
    try:
        native.build("ops")
    except native.MissingToolError as error:
        pytest.skip(f"no native operators: {error}")
    found = native_ops()
    if found is None:
        pytest.skip("this CPU has no AVX-512 VNNI, which the native operators need")
    return found


@pytest.fixture(scope="session")
def both(library: Path) -> Callable[[bytes], list]:
    """Open a graph without and with the library."""

    def open_both(graph: bytes) -> list:
        sessions = []
        for wanted in ("off", str(library)):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(VARIABLE, wanted)
                sessions.append(open_session(graph, EngineOptions(threads=2)))
        return sessions

    return open_both


def product(depth: int, columns: int) -> bytes:
    sketch = Sketch()
    x = sketch.input("x", FLOAT, ["batch", "tokens", depth])
    sketch.output(sketch.node("MatMul", x, sketch.weight("w", depth, columns)), "y")
    model = sketch.model()
    assert QuantizeW8A8()(model).modified
    return ir.serde.serialize_model(model).SerializeToString()


@settings(deadline=None)
@given(
    depth=st.integers(1, 300),
    columns=st.integers(1, 300),
    rows=st.integers(1, 80),
    batch=st.integers(1, 3),
    size=st.floats(-30, 30),
    seed=st.integers(0, 1000),
)
def test_products_are_those_of_the_definition(
    both: Callable[[bytes], list],
    depth: int,
    columns: int,
    rows: int,
    batch: int,
    size: float,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    plain, fused = both(product(depth, columns))
    x = random.standard_normal((batch, rows, depth)).astype(np.float32) * np.float32(10.0**size)
    x[0, rows // 2] = 0  # a row of zeros divides 0 by 0
    x[-1, -1, -1] = 0.5 * np.abs(x[-1, -1]).max()  # between two levels
    for given_x in (x, x[:, :1], -x):
        expected = plain.run(None, {"x": given_x})[0]
        assert fused.run(None, {"x": given_x})[0].tobytes() == expected.tobytes()


def test_no_rows_make_no_products(both: Callable[[bytes], list]) -> None:
    for session in both(product(8, 5)):
        assert session.run(None, {"x": np.zeros((1, 0, 8), np.float32)})[0].shape == (1, 0, 5)


def test_the_library_is_what_runs(
    both: Callable[[bytes], list], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the tests above would compare the definition with itself."""
    made = onnxruntime.SessionOptions

    def options() -> onnxruntime.SessionOptions:
        found = made()
        found.optimized_model_filepath = str(tmp_path / f"{len(list(tmp_path.iterdir()))}.onnx")
        return found

    monkeypatch.setattr(onnxruntime, "SessionOptions", options)
    both(product(8, 5))
    plain, fused = ({node.op_type for node in ir.load(file).graph} for file in files(tmp_path))
    assert "MatMulIntegerToFloat" in plain
    assert fused == {"RowQuantizedProduct"}


def files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_a_models_logits_are_the_same(
    library: Path, tiny_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for wanted in ("off", str(library)):
        monkeypatch.setenv(VARIABLE, wanted)
        with SpeculativeDecoder.from_bundle(tiny_bundles["w8a8"], drafter="none") as decoder:
            rows = []
            for width, past in ((70, 0), (1, 70), (7, 60), (16, 40)):
                tokens = np.arange(width, dtype=np.int64)[None] % decoder.target.spec.vocab_size
                step = Step(tokens=tokens, past=np.array([past]))
                rows.append(decoder.target.forward(step).logits().tobytes())
        found.append(rows)
    assert found[0] == found[1]


def test_a_library_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "wrong.so").write_text("no library")
    for name in ("wrong.so", "absent.so"):
        monkeypatch.setenv(VARIABLE, str(tmp_path / name))
        with pytest.raises(EngineError, match=f"{name}.*{VARIABLE}=off"):
            native_ops()
