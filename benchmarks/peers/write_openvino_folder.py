"""Copy a GGUF file into FOLDER, with the OpenVINO model that openvino-genai makes of it beside it.

write_openvino_folder.py WEIGHTS.gguf FOLDER
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import openvino_genai


def main(weights: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    copy = folder / "model.gguf"
    shutil.copyfile(weights, copy)
    openvino_genai.LLMPipeline(copy, "CPU", enable_save_ov_model=True)
    if not (folder / "openvino_model.xml").exists():
        raise SystemExit(f"openvino-genai kept no model in {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
