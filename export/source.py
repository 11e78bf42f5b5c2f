"""Source weights: a Hugging Face folder or a GGUF file, as one thing."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

from specplug.bundle import file_sha256
from specplug.export.families import check_family
from specplug.export.tokenizers import SourceTokenizer, folder_tokenizer
from specplug.types import ExportError


@dataclass(slots=True)
class Source:
    """A checkpoint, read: its configuration and its weights in fp32."""

    path: Path
    config: Any
    """The transformers configuration."""
    weights: dict[str, Any]
    """torch tensors under the names of the transformers model."""
    tokenizer: SourceTokenizer | None
    licence: str | None = None
    files: tuple[Path, ...] = field(default=())
    """What was read, for the provenance."""
    name: str = ""
    """What the provenance calls it; the file's or folder's name if empty."""
    revision: str | None = None
    """The commit, for sources that have one."""

    def reference(self) -> Any:
        """The transformers model over these very tensors: what the graph must reproduce."""
        from transformers.initialization import no_init_weights

        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                self.config, dtype=torch.float32, attn_implementation="eager"
            )
        outcome = model.load_state_dict(self.weights, strict=False, assign=True)
        model.tie_weights()
        missing = set(outcome.missing_keys)
        if self.config.tie_word_embeddings:
            missing.discard("lm_head.weight")
        if missing or outcome.unexpected_keys:
            raise ExportError(
                f"{self.path.name} does not fit {self.config.model_type}: "
                f"missing {sorted(missing)[:3]}, unexpected {outcome.unexpected_keys[:3]}"
            )
        return model.eval()

    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(tensor.numel() for tensor in self.weights.values())

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that were read, by name."""
        return {path.name: file_sha256(path) for path in self.files}


def open_source(path: Path) -> Source:
    """Read a checkpoint: a GGUF file, a Hugging Face folder, or a Hub id.

    Raises:
        ExportError: nothing readable there, or an architecture not supported yet.
    """
    if path.is_file() and path.suffix == ".gguf":
        from specplug.export.gguf import open_gguf

        return open_gguf(path)
    if (path / "config.json").is_file():
        return _open_folder(path)
    if not path.exists():
        return _open_hub(str(path))
    raise ExportError(f"{path} is neither a .gguf file nor a folder with a config.json")


def _open_hub(source: str) -> Source:
    from specplug.export.hub import fetch_snapshot, is_hub_id

    if not is_hub_id(source):
        raise ExportError(
            f"{source} does not exist: give a .gguf file, a Hugging Face folder, or a Hub id "
            "(org/name or org/name@revision)"
        )
    folder, revision = fetch_snapshot(source)
    opened = _open_folder(folder)
    opened.name, opened.revision = source.partition("@")[0], revision
    return opened


def _open_folder(folder: Path) -> Source:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ExportError(
            f"{folder} holds no .safetensors file; pickled weights (.bin) are not read, since "
            "loading them runs their code: convert them with transformers' save_pretrained"
        )
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        check_family(config)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"transformers cannot load {folder}: {error}") from error
    weights = dict(model.state_dict())
    if model.config.tie_word_embeddings and "model.embed_tokens.weight" in weights:
        weights.pop("lm_head.weight", None)
    return Source(
        path=folder,
        config=model.config,
        weights=weights,
        tokenizer=folder_tokenizer(folder, _stops(model.generation_config.eos_token_id)),
        files=(folder / "config.json", *shards),
    )


def _stops(eos: int | list[int] | None) -> list[int]:
    return [eos] if isinstance(eos, int) else eos or []
