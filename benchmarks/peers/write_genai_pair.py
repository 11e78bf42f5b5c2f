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
    config = _config(target)
    config["model"]["draft"] = _within(folder, "draft", draft)
    config["model"]["decoder"] = _within(folder, "target", target)
    config["speculative"] = {"max_draft_tokens": 2}  # of 2, 4 and adaptive, the fastest
    (folder / "genai_config.json").write_text(json.dumps(config, indent=2))


def _within(folder: Path, name: str, model: Path) -> dict[str, Any]:
    """The model's description, its files linked into the folder: paths may not lead out of it."""
    (folder / name).symlink_to(os.path.relpath(model, folder))
    decoder = _config(model)["model"]["decoder"]
    return decoder | {"filename": f"{name}/{decoder['filename']}"}


def _config(model: Path) -> dict[str, Any]:
    return dict(json.loads((model / "genai_config.json").read_text()))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    main(*map(Path, sys.argv[1:]))
