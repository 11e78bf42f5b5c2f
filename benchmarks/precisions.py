"""Size and quality of every precision of one source, as docs/PRECISIONS.md lists them.

.venv/bin/python benchmarks/precisions.py SOURCE [--only PRECISION ...] [--name NAME] [--keep DIR]

``--only`` measures some again, and leaves the others' figures in the result NAME as they were.
``--keep`` leaves the bundles in a folder, for the scripts that take bundles.
``gguf`` only where the source is a GGUF file. Cost is what benchmarks/speculation.py measures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import get_args

from measuring import RESULTS, write_result
from specplug.export import export_bundle
from specplug.export.precision import Precision


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path)
    parser.add_argument("--only", nargs="+", choices=get_args(Precision))
    parser.add_argument("--name", default="precisions", help="of the result file")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    source, result = arguments.source, RESULTS / f"{arguments.name}.json"
    runs = json.loads(result.read_text())["runs"] if arguments.only and result.exists() else {}
    for precision in arguments.only or get_args(Precision):
        if precision == "gguf" and source.suffix != ".gguf":
            continue
        with tempfile.TemporaryDirectory() as folder:
            bundle = (arguments.keep or Path(folder)) / f"{precision}.bundle"
            target = export_bundle(source, bundle, precision=precision, force=True).target
        if target.quality is None:
            raise SystemExit(f"{precision}: no quality in the manifest")
        runs[precision] = {
            "megabytes": sum(file.bytes for file in target.files) / 1e6,
            "quality": target.quality.model_dump(),
            "perplexity_ratio": target.quality.perplexity_ratio,
            "min_width": target.min_width,
            "rounded_again": target.rounded_again,
        }
        print(
            f"| {precision} | {runs[precision]['megabytes']:.0f} MB | {target.quality.mean_kl:.4f} "
            f"| {target.quality.top1_agreement:.3f} | {target.quality.perplexity_ratio:.4f} "
            f"| {target.min_width} |",
            flush=True,
        )
    print(write_result(arguments.name, {"source": source.name, "runs": runs}))


if __name__ == "__main__":
    main()
