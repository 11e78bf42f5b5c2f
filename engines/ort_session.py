"""ONNX Runtime sessions: thread pools, providers, errors."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime

from specplug.engines.cuda_memory import cuda_number
from specplug.engines.native_ops import native_ops
from specplug.types import HIDDEN_STATES, EngineError

if TYPE_CHECKING:
    from specplug.opening import EngineOptions

if os.environ.get("ORT_DISABLE_TELEMETRY") == "1":  # for who imported it before specplug
    onnxruntime.disable_telemetry_events()

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

_pool_threads: int | None = None  # of ONNX Runtime's pool for the process, once we made one


def open_session(graph: Path | bytes, options: EngineOptions, *, pack_weights: bool = True) -> Any:
    """An ``onnxruntime.InferenceSession`` over a file or a serialized model.

    A target and its draft share one thread pool: with one each they would spin against one
    another. ONNX Runtime's only shared pool is the process's, and once it exists every session
    of the process has to use it, so an engine without a draft keeps a pool of its own.

    Args:
        graph: the file, with its data beside it, or the model itself.
        options: how it is to run.
        pack_weights: lay weights out for the kernels, which takes time and as much memory again.

    Raises:
        EngineError: a provider is not in this build or cannot be used here, the graph cannot be
            loaded, or the process's pool has another number of threads.
    """
    on_cuda = _names_device(options)
    providers = _cuda_provider(options.device) if on_cuda else list(options.providers)
    available = onnxruntime.get_available_providers()
    for provider in options.providers:
        if provider not in available:
            raise EngineError(
                f"provider {provider!r} is not in this ONNX Runtime: have {available}"
            )
    threads = options.threads or physical_cores()
    if options.share_threads:
        _make_process_pool(threads)

    # Elsewhere a graph's own definitions run, on that device.
    ops = native_ops() if providers == [_CPU] else None

    def open_with(per_session: bool) -> Any:
        session_options = onnxruntime.SessionOptions()
        session_options.use_per_session_threads = per_session
        session_options.intra_op_num_threads = threads if per_session else 0
        if not pack_weights:
            session_options.add_session_config_entry("session.disable_prepacking", "1")
        # Of products that are fused from DequantizeLinear: activations in int8, as in ours.
        session_options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
        if ops is not None:
            session_options.register_custom_ops_library(str(ops))
        session_options.log_severity_level = 3  # errors; they reach the caller as exceptions
        return onnxruntime.InferenceSession(
            graph if isinstance(graph, bytes) else str(graph),
            session_options,
            providers=providers,
            enable_fallback=0,  # a provider that fails is an error, not a slower run
        )

    with mapped_errors("loading a graph" if isinstance(graph, bytes) else f"loading {graph.name}"):
        try:
            session = open_with(per_session=_pool_threads is None)
        except RuntimeError as error:
            if "global thread pool" not in str(error):
                raise
            session = open_with(per_session=False)  # the host program made the process's pool
    if on_cuda and _CUDA not in session.get_providers():  # it only warns of that
        raise EngineError(
            f"device {options.device!r}: ONNX Runtime cannot use CUDA here; its build needs a GPU, "
            "NVIDIA's driver, and CUDA and cuDNN where the loader finds them: see docs/ENGINES.md"
        )
    return session


def off_cpu(options: EngineOptions) -> bool:
    """Whether another provider than the CPU's is asked for."""
    return _names_device(options) or options.providers != (_CPU,)


def _names_device(options: EngineOptions) -> bool:
    return options.device not in (None, "cpu")


def _cuda_provider(device: str | None) -> list[tuple[str, dict[str, str]]]:
    """The CUDA provider on a device such as ``"cuda:1"``, its libraries loaded."""
    number = cuda_number(str(device), "the onnxruntime engine runs on cpu, cuda, cuda:1, …")
    available = onnxruntime.get_available_providers()
    if _CUDA not in available:
        raise EngineError(
            f"device {device!r}: this ONNX Runtime has no CUDA provider, only {available}: "
            "pip install 'specplug[gpu]', as docs/ENGINES.md says, or use the engine pytorch"
        )
    with redirect_stdout(io.StringIO()):  # prints what it does not find
        onnxruntime.preload_dlls()
    # fp32 is to be fp32: by default products there are of TF32, which has ten bits.
    return [(_CUDA, {"device_id": str(number), "use_tf32": "0"})]


def check_vocabulary(session: Any, vocab_size: int) -> None:
    """Refuse a graph whose logits are not those of ``vocab_size`` tokens, where it says so."""
    found = next(value.shape[-1] for value in session.get_outputs() if value.name == "logits")
    if isinstance(found, int) and found != vocab_size:
        raise EngineError(f"the graph has {found} logits a token, its description {vocab_size}")


def hidden_size(session: Any) -> int:
    """Values a token of a graph's hidden states; 0 if it gives none."""
    sizes = [v.shape[-1] for v in session.get_outputs() if v.name == HIDDEN_STATES]
    return int(sizes[0]) if sizes else 0


def _make_process_pool(threads: int) -> None:
    global _pool_threads
    if _pool_threads is None:
        onnxruntime.set_global_thread_pool_sizes(threads, 1)
        _pool_threads = threads
    elif _pool_threads != threads:
        raise EngineError(
            f"threads {threads}: this process already runs its engines on {_pool_threads}, "
            "and all of them share one pool"
        )


def physical_cores() -> int:
    """Physical cores this process may run on; hardware threads of one core count once."""
    try:
        usable = os.sched_getaffinity(0)
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
    cores = set()
    for cpu in usable:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        cores.add(siblings.read_text() if siblings.exists() else str(cpu))
    return len(cores)


@contextmanager
def mapped_errors(doing: str) -> Iterator[None]:
    """Every failure of the backend as an :class:`EngineError`."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:  # its exceptions share no base but Exception
        raise EngineError(f"ONNX Runtime failed {doing}: {error}") from error
