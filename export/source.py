"""Source weights: a Hugging Face folder or a GGUF file, as one thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open

from specplug.bundle_paths import file_sha256
from specplug.checkpoint_path import check_checkpoint, is_gguf, is_hub_id
from specplug.export.configs import check_sizes, one_line, read_config
from specplug.export.folders import CONFIG, check_weights, read_json, readable
from specplug.export.harmless import check_unread, without_harmless
from specplug.export.hub import fetch_snapshot, preview_snapshot
from specplug.export.lazy import LazyTensor, MissingValuesError
from specplug.export.quantized import dequantized
from specplug.export.tokenizer_folder import end_tokens, folder_tokenizer, stated_end_tokens
from specplug.export.tokenizers import SourceTokenizer
from specplug.types import ExportError, SpecplugError

_SMALL = 1 << 20  # parameters that are no burden, whatever the checkpoint holds


@dataclass(slots=True)
class Source:
    """A checkpoint, read: its configuration and its weights in fp32."""

    path: Path
    config: Any
    """The transformers configuration."""
    weights: dict[str, Any]
    """Tensors under the names of the transformers model, a tied head left out; lazy ones."""
    tokenizer: SourceTokenizer | None
    end_tokens: tuple[int, ...] = ()
    """What the configurations say of them; the tokenizer's are all."""
    licence: str | None = None
    files: tuple[Path, ...] = field(default=())
    """What was read, for the provenance."""
    name: str = ""
    """What the provenance calls it; the file's or folder's name if empty."""
    revision: str | None = None
    """The commit, for sources that have one."""

    download_bytes: int = 0
    """Of the Hub's files that are still to be fetched; its weights cannot be read before."""

    ignored: tuple[str, ...] = ()
    """Tensors of the checkpoint that are left out, and do not change what the model says."""

    def reference(self) -> Any:
        """The transformers model over these very tensors: what the graph must reproduce.

        Run it under ``torch.no_grad``; lazy tensors know no inference mode.
        """
        return load_model(self.config, self.weights, self.path.name)[0]

    def model(self, dtype: torch.dtype, device: str) -> Any:
        """The transformers model with its weights in memory, to be run as it is."""
        made = self.reference()
        for module in made.modules():
            for name, weight in module.named_parameters(recurse=False):
                if isinstance(weight, LazyTensor):
                    values = weight.values().to(device=device, dtype=dtype)
                    module.register_parameter(name, torch.nn.Parameter(values, requires_grad=False))
        made.tie_weights()
        return made.to(device=device, dtype=dtype)

    def parameters(self) -> int:
        """Number of weights, tied ones once."""
        return sum(tensor.numel() for tensor in set(self.weights.values()))

    def hashes(self) -> dict[str, str]:
        """SHA-256 of the files that were read, by name."""
        return {path.name: file_sha256(path) for path in self.files}


def open_source(path: Path) -> Source:
    """Read a checkpoint: a GGUF file, a Hugging Face folder, or a Hub id.

    Raises:
        ExportError: nothing readable there, or an architecture not supported yet.
    """
    check_checkpoint(path)
    if is_gguf(path):
        from specplug.export.gguf import open_gguf

        return open_gguf(path)
    return _open_folder(path) if path.exists() else _open_hub(str(path))


def preview_source(path: Path) -> Source:
    """Read a checkpoint as :func:`open_source` does, without downloading weights.

    The tensors of a Hub id that is not in the cache have names and shapes, and no values.
    """
    if path.exists() or not is_hub_id(str(path)):
        return open_source(path)
    preview = preview_snapshot(str(path))
    if preview is None:
        return open_source(path)
    stored = {name: _shape_only(shape, dtype) for name, (dtype, shape) in preview.tensors.items()}
    opened = _read_folder(preview.folder, stored, downloaded=False)
    opened.name, opened.revision = str(path).partition("@")[0], preview.folder.name
    opened.download_bytes = preview.download_bytes
    return opened


def _shape_only(shape: tuple[int, ...], dtype: torch.dtype) -> LazyTensor:
    def make() -> torch.Tensor:
        raise MissingValuesError("weights that were not downloaded have no values")

    return LazyTensor(torch.empty(shape, dtype=dtype, device="meta"), make)


def _open_hub(source: str) -> Source:
    folder, revision = fetch_snapshot(source)
    opened = _open_folder(folder)
    opened.name, opened.revision = source.partition("@")[0], revision
    return opened


def _open_folder(folder: Path) -> Source:
    read_json(folder / CONFIG)  # before the weights: what is wrong there explains the rest
    shards = check_weights(folder)
    stored = dict(item for shard in shards for item in _lazy_tensors(shard))
    opened = _read_folder(folder, stored)
    opened.files = (folder / CONFIG, *shards)
    return opened


def _read_folder(
    folder: Path, stored: Mapping[str, LazyTensor], *, downloaded: bool = True
) -> Source:
    """A source whose tensors are known already."""
    config, quantization = read_config(folder)
    try:
        check_sizes(config, len(stored))
        kept, harmless = without_harmless(config, stored)
        plain, scales = dequantized(quantization, kept, folder.name)
        plain = plain if downloaded else _without_tied(config, plain)
        model, unread = load_model(config, plain, folder.name)
    except SpecplugError:
        raise
    except Exception as error:  # sizes of any value can make transformers and torch raise anything
        raise ExportError(f"transformers cannot load {folder}: {one_line(error)}") from error
    check_unread(folder.name, config.model_type, unread)
    return Source(
        path=folder,
        config=config,
        weights=model_weights(model),
        tokenizer=folder_tokenizer(folder, int(config.vocab_size)),
        end_tokens=end_tokens(stated_end_tokens(folder), int(config.vocab_size)),
        ignored=(*harmless, *scales),
    )


def _without_tied(config: Any, stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors without a stored head that the configuration ties to the embedding.

    transformers unties the two if their values differ, which are not known here: that they are
    equal is almost always so.
    """
    made = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    tied = getattr(made, "_tied_weights_keys", None) if config.tie_word_embeddings else None
    return {name: tensor for name, tensor in stored.items() if (tied or {}).get(name) not in stored}


def _lazy_tensors(shard: Path) -> Iterator[tuple[str, LazyTensor]]:
    """The tensors of a safetensors file; it is mapped into memory only while one is read."""

    def read(name: str) -> torch.Tensor:
        with safe_open(shard, framework="pt") as file:
            tensor: torch.Tensor = file.get_tensor(name)
            return tensor

    with readable(shard), safe_open(shard, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (it is no dict)
            yield name, LazyTensor(file.get_tensor(name).to("meta"), partial(read, name))


def load_model(
    config: Any, weights: Mapping[str, torch.Tensor], name: str
) -> tuple[Any, tuple[str, ...]]:
    """The transformers model over some tensors, as lazy as they are, in fp32.

    Args:
        config: the transformers configuration.
        weights: under the names of the checkpoint; transformers renames and joins them.
        name: of the source, for errors.

    Returns:
        The model, and the names that it has no place for.

    Raises:
        ExportError: tensors are missing, or of other shapes than the configuration says.
    """
    made = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    _check_parameters(made, config, weights, name)
    model, found = made.from_pretrained(
        None,
        config=config,
        state_dict=dict(weights),
        dtype=torch.float32,
        attn_implementation="eager",
        trust_remote_code=False,
        output_loading_info=True,
        ignore_mismatched_sizes=True,  # they are refused here
    )
    for problem in ("missing", "mismatched"):
        names = sorted(map(str, found[f"{problem}_keys"]))
        if names:
            instead = sorted(found["unexpected_keys"])[:1] if problem == "missing" else []
            raise ExportError(
                f"{name} does not fit {config.model_type}: {problem} {', '.join(names[:3])}"
                + "".join(f"; it holds {held}, which has no place there" for held in instead)
            )
    return model.eval(), tuple(sorted(found["unexpected_keys"]))


def _check_parameters(
    made: Any, config: Any, weights: Mapping[str, torch.Tensor], name: str
) -> None:
    """Refuse a model much larger than its weights: what is not among them would be allocated."""
    with torch.device("meta"):
        wanted = sum(parameter.numel() for parameter in made(deepcopy(config)).parameters())
    held = sum(tensor.numel() for tensor in weights.values())
    if wanted > 2 * held + _SMALL:
        raise ExportError(
            f"{name} does not fit {config.model_type}: its configuration asks for {wanted:,} "
            f"parameters, and it holds {held:,}"
        )


def model_weights(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors by name, a head that is the embedding left out."""
    weights: dict[str, torch.Tensor] = model.state_dict(keep_vars=True)
    if weights.get("lm_head.weight") is weights.get("model.embed_tokens.weight"):
        weights.pop("lm_head.weight", None)
    return weights
