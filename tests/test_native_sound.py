"""The C++ runtime under sanitizers, memcheck and fuzzing, and as an installed library."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import numpy as np
import pytest

from tests_support import native as support
from tests_support.native import BUILD, Native, in_native, in_python

FUZZ_SECONDS = 20  # each of three parsers
SUPPRESSIONS = support.ROOT / "engines" / "native" / "tests" / "suppressions"

pytestmark = pytest.mark.slow


def run(*command: object, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def build(kind: str) -> None:
    try:
        support.build(kind)
    except support.MissingToolError as error:
        pytest.skip(f"no {kind} build: {error}")


def test_clang_tidy() -> None:
    build("tidy")


def test_units(native_build: None) -> None:
    run("ctest", "--test-dir", BUILD / "release", "--output-on-failure")


def test_address_and_undefined_behaviour(tiny_bundles: dict[str, Path]) -> None:
    """Units, the corpus, and generations of every kind; whatever leaks is an error, too."""
    build("address")
    options = {
        "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1",
        "LSAN_OPTIONS": f"suppressions={SUPPRESSIONS / 'leak.txt'}:print_suppressions=0",
    }
    run("ctest", "--test-dir", BUILD / "address", "--output-on-failure", **options)
    program = [BUILD / "address" / "tests" / "tool_inside"]
    random = np.random.default_rng(11)
    for name in ("fp32", "w8a8", "standard-fp32"):
        bundle = tiny_bundles[name]
        drafters = support.drafters_of(bundle)
        native = Native(
            bundle,
            program=program,
            environment=options,
            load_draft="draft" in drafters,
            history_tokens=0,
        )
        for _ in range(20):
            request = support.random_request(random, native.info["vocab_size"], drafters)
            assert in_native(native, request) == in_python(bundle, request), request
        native.ask("encode", text="Some text, 123 \N{GRINNING FACE}.")
        assert native.close() == 0


def test_threads(tiny_bundle: Path) -> None:
    """8 threads, 200 requests over one session, costs measured in between, no race."""
    build("thread")
    options = {"TSAN_OPTIONS": f"suppressions={SUPPRESSIONS / 'thread.txt'}:halt_on_error=1"}
    native = Native(
        tiny_bundle,
        program=[BUILD / "thread" / "tests" / "tool_inside"],
        environment=options,
        threads=1,
        load_draft=True,
    )
    request = {"prompt": [1, 2, 3, 1, 2, 3, 1], "drafter": "auto", "temperature": 0.7}
    different = native.ask("threads", threads=8, requests=25, max_tokens=12, **request)
    assert different == [0] * 8
    assert native.close() == 0


@pytest.mark.skipif(not shutil.which("valgrind"), reason="valgrind is not installed")
def test_memcheck(native_build: None, tiny_bundle: Path) -> None:
    """Nothing uninitialized decides anything, nothing definitely lost."""
    program = ["valgrind", "--quiet", "--error-exitcode=9", "--leak-check=full"]
    program += ["--errors-for-leak-kinds=definite", "--show-leak-kinds=definite"]
    program += [f"--suppressions={SUPPRESSIONS / 'valgrind.txt'}"]
    tool = BUILD / "tool" / "specplug_tool_static"
    native = Native(tiny_bundle, program=[*program, tool], threads=1, load_draft=True)
    for drafter in ("auto", "draft"):
        native.ask(
            "generate", prompt=[1, 2, 3, 1, 2], drafter=drafter, draft_tokens=4, max_tokens=8
        )
    assert native.close() == 0


@pytest.mark.parametrize("parser", ["manifest", "tokenizer", "graph"])
def test_fuzzing(parser: str, tmp_path: Path) -> None:
    build("fuzz")
    kept = support.ROOT / "engines" / "native" / "tests" / "corpus" / parser
    found = tmp_path / "corpus"
    found.mkdir()
    run(
        BUILD / "fuzz" / "tests" / f"fuzz_{parser}",
        f"-max_total_time={FUZZ_SECONDS}",
        "-max_len=16384",
        "-timeout=10",
        f"-artifact_prefix={tmp_path}/",
        found,
        kept,
    )


def test_out_of_memory_is_a_status(native_build: None, tiny_bundle: Path) -> None:
    """Under a limit that a model of a thousand times the cache would break."""
    tool = support.TOOL
    native = Native(program=["bash", "-c", f"ulimit -v 400000; exec {tool}"])
    for size in (10, 10_000_000):  # the first may or may not fit; neither is a crash
        try:
            native.ask("open", path=str(tiny_bundle), history_tokens=size)
            native.ask("generate", prompt=[1] * 1000, max_tokens=100)
        except support.NativeError as error:
            assert error.status in (support.MEMORY, support.ENGINE), error  # noqa: PT017
    assert native.close() == 0


def test_what_is_installed(native_build: None) -> None:
    """Under a megabyte, nothing exported but the C interface, and found by pkg-config."""
    library = (BUILD / "install" / "lib" / "libspecplug.so").resolve()
    assert library.stat().st_size < 1_000_000
    exported = set(re.findall(r" T (\w+)", run("nm", "-D", "--defined-only", library)))
    declared = set(
        re.findall(
            r"\b(specplug_\w+)\(",
            re.sub(
                r"/\*.*?\*/",
                "",
                (BUILD / "install" / "include" / "specplug" / "specplug.h").read_text(),
                flags=re.DOTALL,
            ),
        )
    )
    assert exported == declared
    if shutil.which("pkg-config"):
        path = str(BUILD / "install" / "lib" / "pkgconfig")
        assert "-lspecplug" in run("pkg-config", "--libs", "specplug", PKG_CONFIG_PATH=path)


def test_static_library(native_build: None, tiny_bundle: Path) -> None:
    with (
        Native(tiny_bundle) as shared,
        Native(tiny_bundle, program=[BUILD / "tool" / "specplug_tool_static"]) as static,
    ):
        request = {"prompt": [5, 6, 7], "drafter": "auto", "max_tokens": 12}
        assert in_native(static, request) == in_native(shared, request)


def test_the_example_chat(native_build: None, tiny_bundle: Path) -> None:
    said = subprocess.run(
        [BUILD / "examples" / "chat", tiny_bundle, "8"],
        input="Hello\nAgain\n",
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stderr.count("tokens/s") == 2


def test_the_example_service(native_build: None, tiny_bundle: Path) -> None:
    """Many at once get streamed answers, which their seeds determine; nonsense is refused."""
    service = BUILD / "examples" / "service"
    if not service.exists():
        pytest.skip("cpp-httplib was not found")
    with subprocess.Popen(
        [service, tiny_bundle, "0"], stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            assert running.stdout
            url = f"http://127.0.0.1:{running.stdout.readline().split()[-1]}"

            def ask(seed: int) -> tuple[str, int]:
                body = {"prompt": "Hello", "max_tokens": 20, "temperature": 1.0, "seed": seed}
                with urlopen(f"{url}/generate", json.dumps(body).encode(), timeout=60) as reply:
                    *runs, figures = map(json.loads, reply)
                assert sum(one["tokens"] for one in runs) == figures["new_tokens"]
                return "".join(one["text"] for one in runs), figures["new_tokens"]

            with ThreadPoolExecutor(8) as pool:
                answers = list(pool.map(ask, [1, 2, 3] * 8))
            assert answers == answers[:3] * 8
            with pytest.raises(HTTPError, match="400"):
                urlopen(f"{url}/generate", b"nonsense", timeout=60)
        finally:
            running.kill()
