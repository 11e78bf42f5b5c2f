"""Triton's model and Ray's replica: a load that fails leaves no decoder open."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace

import pytest

from specplug import BatchDecoder
from specplug.integrations.triton.metrics import Metrics
from test_triton import Serve, serve, written  # noqa: F401  (fixtures)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[BatchDecoder]:
    """The decoders that were closed."""
    found: list[BatchDecoder] = []
    close = BatchDecoder.close
    monkeypatch.setattr(BatchDecoder, "close", lambda self: (found.append(self), close(self)))
    return found


def fail(*what: object, **more: object) -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize("step", [(BatchDecoder, "prepare"), (Metrics, "of")], ids=lambda s: s[1])
def test_triton_does_not_finalize_a_model_whose_initialize_failed(
    step: tuple[type, str],
    serve: Serve,  # noqa: F811
    closed: list[BatchDecoder],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(*step, fail)
    with pytest.raises(MemoryError, match="no room"):
        serve()
    assert len(closed) == 1


@pytest.mark.parametrize("opens", [True, False])
def test_a_replica_that_does_not_start(
    opens: bool, tiny_bundle: Path, closed: list[BatchDecoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("specplug.serving.ray")
    monkeypatch.setattr(ray.serve, "get_replica_context", fail)
    if not opens:
        monkeypatch.setattr(BatchDecoder, "from_bundle", fail)
    arguments = SimpleNamespace(
        bundle=tiny_bundle, max_batch=1, prefix_cache=0, target_engine=None, target_device=None,
        drafter="none", cpus=1,
    )  # fmt: skip

    # Ray alone awaits __del__.
    kind = type("Local", (ray.Replica,), {"__del__": lambda replica: None})

    async def start() -> None:
        replica = kind.__new__(kind)
        try:
            await replica.__init__(arguments)
        finally:
            await ray.Replica.__del__(replica)

    monkeypatch.setattr(ray.logs, "set_up", lambda: None)
    with pytest.raises(MemoryError, match="no room"):
        asyncio.run(start())
    assert len(closed) == int(opens)
