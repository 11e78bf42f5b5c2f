"""Write FOLDER, which makes ONNX Runtime GenAI decode one of its models with another drafting.

write_genai_pair.py TARGET DRAFT FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any


def main(target: Path, draft: Path, folder: Path) -> None:
    shutil.copytree(target, folder, ignore=shutil.ignore_patterns("*.onnx", "*.onnx.data"))
    config, drafting = _config(target), _config(draft)["model"]["decoder"]
    config["model"]["draft"] = drafting | {"filename": _beside(draft, drafting, folder)}
    config["model"]["decoder"]["filename"] = _beside(target, config["model"]["decoder"], folder)
    config["speculative"] = {"max_draft_tokens": 4, "min_adaptive_k": 2}
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2))


def _config(model: Path) -> dict[str, Any]:
    return dict(json.loads((model / "genai_config.json").read_text()))


def _beside(model: Path, decoder: dict[str, Any], folder: Path) -> str:
    return os.path.relpath(model / decoder["filename"], folder)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
