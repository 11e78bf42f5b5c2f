"""What is particular to the ONNX Runtime adapter."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import OrtValue

from specplug import EngineError, EngineOptions, Step
from specplug.bundle import Bundle
from specplug.engines import load
from specplug.engines.ort import OrtEngine


def open_target(bundle: Path, **options) -> OrtEngine:
    opened = Bundle.open(bundle)
    engine = load(opened.path, opened.manifest.target, EngineOptions(**options))
    assert isinstance(engine, OrtEngine)
    return engine


def call(engine: OrtEngine, tokens: np.ndarray, past: int) -> np.ndarray:
    step = Step(tokens=tokens[None], past=np.array([past]))
    return engine.forward(step).logits()[0].copy()


def test_memory_is_bounded_over_many_shapes_of_call(tiny_bundle: Path) -> None:
    engine = open_target(tiny_bundle)
    for width in range(2, 300):
        call(engine, np.zeros(width, np.int64), 0)
    assert len(engine._bindings) <= 128


@pytest.mark.parametrize("precision", ["w8a8", "int4"])
def test_narrow_calls_round_otherwise_and_only_when_allowed(
    tiny_bundles: dict[str, Path], precision: str
) -> None:
    """The control of the width tests: without padded attention they would fail."""
    tokens = np.random.default_rng(0).integers(0, 260, size=120)

    def differing(engine: OrtEngine) -> int:
        whole = call(engine, tokens, 0)
        single = [call(engine, tokens[i : i + 1], i) for i in range(len(tokens))]
        return int((np.concatenate(single) != whole).any(axis=1).sum())

    assert differing(open_target(tiny_bundles[precision])) == 0
    assert differing(open_target(tiny_bundles[precision], allow_narrow=True)) > 0


def test_min_width_is_enforced_unless_given_up(tiny_bundle: Path) -> None:
    assert Bundle.open(tiny_bundle).manifest.target.min_width == 2
    one = np.zeros(1, np.int64)
    with pytest.raises(EngineError, match="narrower than min_width 2"):
        call(open_target(tiny_bundle), one, 0)
    assert call(open_target(tiny_bundle, allow_narrow=True), one, 0).shape == (1, 260)


def test_unknown_provider_names_the_available_ones(tiny_bundle: Path) -> None:
    with pytest.raises(EngineError, match="'NoSuchProvider' is not in this ONNX Runtime: have"):
        open_target(tiny_bundle, providers=("NoSuchProvider",))


HOST_PROGRAM = """
import sys, onnxruntime
from pathlib import Path
from specplug.engines import load
from specplug import EngineError, EngineOptions
from specplug.bundle import Bundle

bundle = Bundle.open(sys.argv[1])

def open_target(**options):
    return load(bundle.path, bundle.manifest.target, EngineOptions(**options))

def open_own_session():
    return onnxruntime.InferenceSession(str(bundle.path / bundle.manifest.target.graph))

"""


def host_program(bundle: Path, code: str) -> str:
    """What a program prints whose process is its own: ONNX Runtime's pool is made once."""
    done = subprocess.run(
        [sys.executable, "-c", HOST_PROGRAM + code, str(bundle)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_engine_alone_leaves_the_host_programs_sessions_working(tiny_bundle: Path) -> None:
    assert host_program(
        tiny_bundle, "open_target(); open_own_session(); open_target(threads=1); print('opened')"
    ) == ("opened\n")


def test_an_engine_opens_beside_a_pool_the_host_program_made(tiny_bundle: Path) -> None:
    code = "onnxruntime.set_global_thread_pool_sizes(2, 1); open_target(); print('opened')"
    assert host_program(tiny_bundle, code) == "opened\n"


def test_shared_threads_are_one_pool_a_process(tiny_bundle: Path) -> None:
    code = """
open_target(threads=2, share_threads=True)
open_target(threads=2, share_threads=True)
open_target(threads=3)  # without a wish to share it still opens, on the pool there is
try:
    open_target(threads=3, share_threads=True)
except EngineError as error:
    print(error)
"""
    assert "already runs its engines on 2, and all of them share" in host_program(tiny_bundle, code)


def test_damaged_graph_is_an_engine_error(tiny_bundle: Path, tmp_path: Path) -> None:
    component = Bundle.open(tiny_bundle).manifest.target
    (tmp_path / "target").mkdir()
    (tmp_path / component.graph).write_bytes(b"not a graph")
    with pytest.raises(EngineError, match=r"ONNX Runtime failed loading model\.onnx"):
        load(tmp_path, component, EngineOptions())


def test_another_number_of_logits_than_described_is_refused(opened: Bundle) -> None:
    component = opened.manifest.target.model_copy(update={"vocab_size": 300})
    with pytest.raises(EngineError, match="has 260 logits a token, its description 300"):
        load(opened.path, component, EngineOptions())


@pytest.mark.parametrize("name", ["fp32", "standard-fp32"])
def test_inputs_that_are_copied_when_they_are_bound(
    tiny_bundles: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU: every call binds anew, and scores are the same."""
    tokens = np.random.default_rng(0).integers(0, 260, size=600)
    found = []
    for copied in (False, True):
        monkeypatch.setattr("specplug.engines.ort.off_cpu", lambda options, copied=copied: copied)
        engine = open_target(tiny_bundles[name])
        if copied:
            monkeypatch.setattr("specplug.engines.ort._bind", bind_copies)
        pieces = [call(engine, tokens[i : i + 40], i) for i in range(0, 600, 40)]
        found.append(np.concatenate([*pieces, call(engine, tokens[300:340], 300)]))
        engine.close()
    assert np.array_equal(*found)


def bind_copies(binder: Callable[..., None], arrays: dict[str, np.ndarray]) -> None:
    """Inputs by values of now, as a provider of another device takes them; outputs as they are."""
    if binder.__name__ == "bind_input":
        binding = binder.__self__  # type: ignore[attr-defined]
        for name, array in arrays.items():
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array.copy()))
        return
    for name, array in arrays.items():
        binder(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)


def test_appending_graphs_stay_on_the_cpu(foreign_bundles: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="appending graphs run on the CPU here"):
        open_target(foreign_bundles["optimum"], device="cuda")
