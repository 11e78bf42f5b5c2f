"""Every family's graph against transformers, on tiny random checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from specplug import EngineOptions, Step
from specplug.bundle import Dialect
from specplug.engines.ort_dialects import DIALECTS
from specplug.export import graphs, measuring, tensorrt
from specplug.export.attention import max_entries
from specplug.export.families import FAMILIES, REFUSED
from specplug.export.precision import Precision
from specplug.export.rounding import apply_precision
from specplug.export.source import Source, open_source
from specplug.types import Engine, ExportError
from tests_support.families import NAMED, OTHERS
from tests_support.tiny import write_checkpoint

CASES = [
    *(pytest.param(name, id=name) for name in NAMED),
    *(pytest.param(name, id=name, marks=pytest.mark.slow) for name in OTHERS),
]
BUILT_IN_ALL = ("llama", "gemma2 capped", "phi3 long", "gpt2", "qwen3_moe", "falcon grouped")
TOLERANCE = 1e-4
LENGTH = 64
TOKENS = np.random.default_rng(3).integers(0, 260, size=(2, LENGTH))


class Case:
    """A family's graph, and what transformers says of TOKENS."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        family = name.split()[0]
        path = write_checkpoint(
            folder / "source",
            model_type=family,
            **(NAMED | OTHERS)[name] | {"initializer_range": 0.1},
        )
        self.folder = folder
        self.source: Source = open_source(path)
        with torch.no_grad():
            self.expected = self.source.reference()(torch.from_numpy(TOKENS)).logits.numpy()

    def graph(self, dialect: Dialect, precision: Precision = "fp32") -> Path:
        folder = self.folder / dialect / precision
        if not folder.exists():
            if precision == "fp32":
                graph = graphs.build_fp32(self.source, dialect)
            else:
                graph = graphs.load(self.graph(dialect).parent)
                apply_precision(graph, precision, dialect=dialect)
            graphs.save(graph, folder)
        return folder / graphs.GRAPH

    def engine(
        self, precision: Precision = "fp32", max_batch: int = 1, dialect: Dialect = "ort"
    ) -> Engine:
        path = self.graph(dialect, precision)
        graph = graphs.load(path.parent)
        return DIALECTS[dialect](
            path,
            cache=graphs.cache_layout(graph),
            vocab_size=260,
            max_length=max_entries(self.source.config),
            min_width=1,
            options=EngineOptions(max_batch=max_batch, threads=1),
        )


DIALECT = pytest.mark.parametrize("dialect", ["ort", "standard"])


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("family"))


def rows(engine: Engine, tokens: np.ndarray, past: int) -> np.ndarray:
    step = Step(tokens=np.ascontiguousarray(tokens[None]), past=np.array([past]))
    return engine.forward(step).logits()[0].copy()


def close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


@DIALECT
def test_one_row(case: Case, dialect: Dialect) -> None:
    """Prefill, verification of several tokens, rollback to a shorter past, and reuse."""
    engine, tokens, expected = case.engine(dialect=dialect), TOKENS[0], case.expected[0]
    assert np.abs(expected).max() > 0.1  # else any graph would pass
    close(rows(engine, tokens[:40], 0), expected[:40])
    close(rows(engine, tokens[40:48], 40), expected[40:48])
    rows(engine, (tokens[20:40] + 1) % 260, 20)  # drafts that were wrong
    close(rows(engine, tokens[20:33], 20), expected[20:33])
    close(rows(engine, tokens[33:34], 33), expected[33:34])
    close(rows(engine, tokens[34:], 34), expected[34:])


@DIALECT
def test_two_rows(case: Case, dialect: Dialect) -> None:
    """A batch whose rows have other pasts and other lengths."""
    engine, expected = case.engine(max_batch=2, dialect=dialect), case.expected
    close(
        engine.forward(Step(tokens=TOKENS[:, :30], past=np.zeros(2, np.int64))).logits(),
        expected[:, :30],
    )
    pasts, lengths = (30, 11), (6, 4)
    pieces = np.stack([TOKENS[row, past : past + 6] for row, past in enumerate(pasts)])
    step = Step(tokens=pieces, past=np.array(pasts), lengths=np.array(lengths, np.int32))
    found = engine.forward(step).logits()
    for row, (past, length) in enumerate(zip(pasts, lengths, strict=True)):
        close(found[row, :length], expected[row, past : past + length])


@pytest.mark.parametrize("precision", ["w8a8", "int4"])
def test_rows_do_not_depend_on_width(case: Case, precision: Precision) -> None:
    assert measuring.measure_min_width(case.engine(precision), TOKENS[0]) == 1


@pytest.mark.slow
def test_tensorrt_builds_it(case: Case, tmp_path: Path) -> None:
    """With the real parser and builder; needs no GPU.

    Between them bf16 and int4 have all operators of the others: attention in half precision, and
    that of fp32, which is taken apart; weights in half precision, and in blocks. Some families are
    built in the others, too, which differ from these two alike in all.
    """
    others = ("fp32", "fp16", "int8") if case.name in BUILT_IN_ALL else ()
    for precision in ("bf16", "int4", *others):
        graph = case.graph("standard", precision)
        for_one = tensorrt.Target(("8.9",), max_batch=2, capacity=256)
        folder = tmp_path / precision
        folder.mkdir()
        (plan,) = tensorrt.build_plans(graph, for_one, folder, lambda *_: None)
        assert (tmp_path / plan.path).stat().st_size > 10_000, precision


def test_every_family_is_tried() -> None:
    assert {name.split()[0] for name in NAMED | OTHERS} == set(FAMILIES)
    assert not set(FAMILIES) & set(REFUSED)


@pytest.mark.parametrize(
    ("family", "config", "reason"),
    [
        ("bloom", {}, "'bloom' is not supported: its attention is biased by distance"),
        ("falcon", {"alibi": True}, "this falcon is not supported: .*ALiBi"),
        ("opt", {"word_embed_proj_dim": 64}, "'opt' is not supported yet: have apertus, "),
    ],
)
def test_others_are_refused_by_name(family: str, config: dict, reason: str, tmp_path: Path) -> None:
    sizes = {"head_dim": None, "num_key_value_heads": None, "intermediate_size": None}
    source = write_checkpoint(tmp_path / "source", model_type=family, **sizes | config)
    with pytest.raises(ExportError, match=reason):
        open_source(source)


def test_a_configuration_that_contradicts_itself(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "tiny", model_type="qwen3")
    config = json.loads((folder / "config.json").read_text())
    config |= {"layer_types": ["full_attention"] * 9}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"(?s)cannot load .*tiny: .*layer_types"):
        open_source(folder)
