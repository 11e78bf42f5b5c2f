"""Lengths and shapes that a manifest says, against those of the target and of the graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from specplug import BundleError, EngineError, SpecplugError, SpeculativeDecoder
from specplug.bundle import CacheLayout
from specplug.engines.key_values import KeyValues
from tests_support import native as support
from tests_support.lengths import DRAFTERS, LENGTHS, PROMPT, SHAPES, changed, export_pairs
from tests_support.native import Native, NativeError

Made = Callable[[str, Callable[[Path], object]], Path]
SHARED = "the draft is a part of the target, whose cache it may share, and its max_length"
MIN_WIDTH = 2  # of the target: as its graphs need
IN_CPP = ("draft", "self", "layers")


@pytest.fixture(scope="session")
def pairs(tiny_source: Path, head_bundles: dict[str, Path], made_once: Made) -> dict[str, Path]:
    folder = made_once("lengths", lambda folder: export_pairs(tiny_source, folder))
    names = [f"{kind}-{dialect}" for kind in DRAFTERS for dialect in ("ort", "standard")]
    found = {name: folder / name for name in names if not name.startswith("head")}
    return found | {"head-ort": head_bundles["fp32-ort"]}


def in_python(bundle: Path, drafter: str) -> list[int]:
    with SpeculativeDecoder.from_bundle(
        bundle, drafter=drafter, draft_tokens="auto" if drafter == "none" else 4
    ) as decoder:
        return list(decoder.generate(PROMPT, max_tokens=50, ignore_eos=True).token_ids)


def in_cpp(native: Native, drafter: str, *, fails: bool = False) -> list[int]:
    tokens = 0 if drafter == "none" else 4
    found = native.ask(
        "generate",
        prompt=PROMPT,
        drafter=drafter,
        draft_tokens=tokens,
        max_tokens=50,
        fresh=True,
        stop_token_ids=[],
    )
    assert fails or not found["stats"]["draft_failures"], found["stats"]["draft_error"]
    made: list[int] = found["tokens"]
    return made


def lengths(bundle: Path, to: Path, target: int, draft: int, width: int) -> Path:
    return changed(
        bundle,
        to,
        target={("max_length",): target, ("min_width",): MIN_WIDTH},
        draft={("max_length",): draft, ("min_width",): width},
    )


@pytest.mark.parametrize("kind", DRAFTERS)
def test_a_drafts_length_changes_no_text(kind: str, pairs: dict[str, Path], tmp_path: Path) -> None:
    """A shorter one stops, a longer one ends with the target or, in its cache, is refused."""
    drafted = []
    for number, (target, draft, width) in enumerate(LENGTHS):
        dialect = "ort" if number % 2 or kind == "head" else "standard"
        bundle = lengths(pairs[f"{kind}-{dialect}"], tmp_path / str(number), target, draft, width)
        if kind in ("self", "layers") and draft > target:
            with pytest.raises(BundleError, match=f"{SHARED} {draft} is beyond the target's"):
                SpeculativeDecoder.from_bundle(bundle, drafter="none")
            continue
        plain = in_python(bundle, "none")
        assert len(plain) == min(50, target - (MIN_WIDTH - 1) - len(PROMPT))
        assert in_python(bundle, DRAFTERS[kind]) == plain, (target, draft, width)
        drafted.append(plain)
    assert drafted


@pytest.mark.parametrize("kind", IN_CPP)
@pytest.mark.parametrize("program", ["release", pytest.param("address", marks=pytest.mark.slow)])
def test_a_drafts_length_in_cpp(
    kind: str, program: str, pairs: dict[str, Path], tmp_path: Path
) -> None:
    """The same, and no write past a mask or a cache, which a sanitizer sees."""
    for number, (target, draft, width) in enumerate(LENGTHS):
        dialect = "ort" if number % 2 else "standard"
        bundle = lengths(pairs[f"{kind}-{dialect}"], tmp_path / str(number), target, draft, width)
        with opened(program) as native:
            if kind != "draft" and draft > target:
                with pytest.raises(NativeError, match=f"{SHARED} {draft} is beyond the target's"):
                    native.ask("open", path=str(bundle), load_draft=True)
                continue
            native.ask("open", path=str(bundle), load_draft=True)
            plain = in_cpp(native, "none")
            assert len(plain) == min(50, target - (MIN_WIDTH - 1) - len(PROMPT))
            assert in_cpp(native, DRAFTERS[kind]) == plain, (target, draft, width)


@cache
def built(kind: str) -> str | None:
    """What is missing for a build of a kind."""
    try:
        support.build(kind)
    except support.MissingToolError as error:
        return str(error)
    return None


def opened(program: str) -> Native:
    """The tool, which a sanitizer watches if the build is of that kind."""
    if missing := built(program):
        pytest.skip(f"no {program} build: {missing}")
    tool = support.TOOL if program == "release" else support.BUILD / "address/tests/tool_inside"
    return Native(program=[tool], environment={"ASAN_OPTIONS": "allocator_may_return_null=1"})


@pytest.mark.parametrize("component", ["target", "draft"])
@pytest.mark.parametrize("name", ["layers-ort", "draft-standard"])
def test_shapes_that_the_graph_does_not_have(
    component: str, name: str, pairs: dict[str, Path], tmp_path: Path
) -> None:
    """An error by name, or text; never a crash."""
    for number, (path, value) in enumerate(SHAPES):
        bundle = changed(pairs[name], tmp_path / str(number), **{component: {path: value}})
        drafter = DRAFTERS[name.partition("-")[0]]
        with suppress(SpecplugError):
            assert in_python(bundle, drafter), (path, value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("component", "name"), [("draft", "layers-ort"), ("target", "draft-standard")]
)
def test_shapes_that_the_graph_does_not_have_in_cpp(
    component: str, name: str, pairs: dict[str, Path], tmp_path: Path
) -> None:
    """An error by name, or text, without a draft that fails; a sanitizer finds nothing."""
    for number, (path, value) in enumerate(SHAPES):
        bundle = changed(pairs[name], tmp_path / str(number), **{component: {path: value}})
        with opened("address") as native:
            with suppress(NativeError):
                native.ask("open", path=str(bundle), load_draft=True)
                assert in_cpp(native, DRAFTERS[name.partition("-")[0]], fails=True)
            assert native.close() == 0, (path, value)


def test_a_cache_takes_no_more_than_it_holds() -> None:
    layout = CacheLayout(layers=1, heads=1, head_size=4, dtype="float32")
    cache = KeyValues(layout, 1, 10)
    cache.make_room(10)
    with pytest.raises(EngineError, match="11 entries: the cache holds 10"):
        cache.make_room(11)
    with pytest.raises(EngineError, match="11 entries: the cache holds 10"):
        cache.load(0, 8, np.zeros((1, 2, 1, 3, 4), dtype=np.float32))
