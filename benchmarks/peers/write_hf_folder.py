"""Write a GGUF file's weights, dequantized, as a Hugging Face folder for peers to build from.

write_hf_folder.py WEIGHTS.gguf FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from specplug.export.source import open_source


def main(weights: Path, folder: Path) -> None:
    source = open_source(weights)
    source.model(torch.float32, "cpu").save_pretrained(folder)
    tokenizer = source.tokenizer
    if tokenizer is None:
        raise SystemExit(f"{weights} has no tokenizer")
    (folder / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special_tokens}
    config["chat_template"] = tokenizer.chat_template
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
