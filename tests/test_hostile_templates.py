"""Hostile chat templates end in time, in bounded memory, and hold Python's lock for no time."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from specplug import template_bounds
from specplug.templates import compile_template, render_template
from tests_support.hostile_templates import GENERATED, HOLDING, OFTEN

MESSAGES = [{"role": "user", "content": "Hello"}]
GAP = 1.0  # seconds; 0.1 where nothing else runs
MEMORY = 3 << 30  # bytes of addresses, of a process that has some 300 MiB


def longest_gap(source: str) -> tuple[float, float]:
    """Seconds for which no other thread ran while a template was rendered, and of the rendering."""
    ended = threading.Event()
    try:
        template = compile_template(source)
    except ValueError:
        return 0.0, 0.0

    def work() -> None:
        with suppress(ValueError):
            render_template(template, MESSAGES, {})
        ended.set()

    thread = threading.Thread(target=work)
    gc.collect()
    begun = last = time.perf_counter()
    thread.start()
    gap = 0.0
    while not ended.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
    thread.join()
    return gap, time.perf_counter() - begun


@pytest.mark.parametrize("name", [*HOLDING, *OFTEN])
def test_a_template_holds_nobody_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "SECONDS", 0.1)
    gap, took = longest_gap({**HOLDING, **OFTEN}[name])
    assert gap < GAP
    assert took < 10


def test_no_filter_holds_anybody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_bounds, "SECONDS", 0.1)
    gaps = {name: longest_gap(source)[0] for name, source in GENERATED.items()}
    assert {name: gap for name, gap in gaps.items() if gap > GAP} == {}


FLOODS = ["values kept", "values in a loop", "macros that hold", "escaped", "a filter block"]

PROGRAM = f"""
import json, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))
from specplug.templates import compile_template, render_template
for name, source in json.load(sys.stdin).items():
    try:
        render_template(compile_template(source), {MESSAGES!r}, {{}})
    except ValueError as error:
        assert not isinstance(error.__cause__, MemoryError), name
print("ended")
"""


def test_memory_is_bounded() -> None:
    sources = {name: OFTEN[name] for name in FLOODS}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(sources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "ended\n", done.stderr[-2000:]
