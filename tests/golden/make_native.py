"""Write ``native.json``: requests, and what the Python package makes of them on the tiny bundle.

Run it with the Python of .venv from the repository's root when answers are meant to change.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from specplug.export import export_bundle
from tests_support import native
from tests_support.tiny import write_checkpoint


def main() -> None:
    """Write the file beside this one."""
    random = np.random.default_rng(8)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "fp32.bundle"
        source = write_checkpoint(Path(folder) / "tiny-llama")
        export_bundle(source, bundle, precision="fp32", self_draft="int4")
        for drafter in native.drafters_of(bundle):
            for sampling in native.SAMPLED:
                request = native.random_request(random, 260, [drafter]) | {"max_tokens": 24}
                for one in native.SAMPLED:
                    for name in one:
                        request.pop(name, None)
                request |= sampling
                cases.append({"request": request, "expected": native.in_python(bundle, request)})
    lines = ",\n".join(json.dumps(case) for case in cases)
    (Path(__file__).parent / "native.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
