"""The bundle: a folder that holds everything needed to decode, described by ``specplug.json``.

Reading trusts nothing: the manifest is validated field by field, every file must lie inside the
folder and match its size and SHA-256, templates run in a sandbox, and nothing is unpickled.
Graphs may only use ONNX Runtime's own operators and data that lies beside them.
"""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from specplug.arguments import checked
from specplug.bundle_files import File, Part, Sha256, check_file
from specplug.bundle_paths import check_distinct, check_inside
from specplug.faults import check_tokens, first_fault
from specplug.graph_check import check_graph
from specplug.text import Tokenizer
from specplug.types import BundleError, Int32Array

MANIFEST = "specplug.json"
SCHEMA_VERSION = 1
_LARGEST_MANIFEST = 1 << 20  # bytes

Count = Annotated[int, Field(ge=1, le=1 << 31)]
Few = Annotated[int, Field(ge=1, le=1 << 16)]
Dialect = Literal["ort", "standard", "concat"]
PrecisionName = Literal["fp32", "fp16", "bf16", "w8a8", "int8", "int4", "gguf"]
TranslationName = Literal["intersection", "reencoding"]


class CacheLayout(Part):
    """Where a graph keeps keys and values: per layer, [batch, heads, capacity, head_size]."""

    layers: Few
    heads: Few
    head_size: Few
    dtype: Literal["float32", "float16", "bfloat16"]
    spare: Annotated[int, Field(ge=0, le=16)] = 0
    """Entries past the last token's that a call may overwrite."""


class Parity(Part):
    """Largest absolute difference of logits between the fp32 graph and its source."""

    prefill: float
    verification: float
    rollback: float


class Quality(Part):
    """The exported graph against its source, on a text."""

    tokens: Count
    text_sha256: Sha256 | None = None
    """Of the text; None: arbitrary tokens, or a bundle older than the field."""
    top1_agreement: float
    mean_kl: float
    """Nats; KL(source, graph), averaged over positions."""
    perplexity: float
    source_perplexity: float

    @property
    def perplexity_ratio(self) -> float:
        """1 is as good as the source; more is worse."""
        return self.perplexity / self.source_perplexity


class Provenance(Part):
    """Where a component's weights come from."""

    source: str
    revision: str | None = None
    """The commit of a Hub repository."""
    sha256: dict[str, Sha256]
    """Of the source's files, by name."""
    licence: str | None = None
    tools: dict[str, str]
    """Versions of what wrote the graph."""
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")] | None = None
    """Of the export, in UTC; None: a bundle older than the field."""

    @field_validator("sha256")
    @classmethod
    def _inside(cls, sha256: dict[str, str]) -> dict[str, str]:
        check_distinct(map(check_inside, sha256))
        return sha256


class TensorRTPlan(Part):
    """A graph built by TensorRT: for one version of it and one compute capability."""

    path: str
    library: Literal["tensorrt", "tensorrt-rtx"]
    version: Annotated[str, Field(max_length=100)]
    compute_capability: Annotated[str, Field(pattern=r"^\d{1,2}\.\d$")]
    max_batch: Count
    capacity: Count
    """Cache entries a row has."""


class HiddenOutput(Part):
    """Hidden states that a target's graph gives beside its logits."""

    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1, max_length=64)]
    """Whose inputs they are, one after another, from 0."""
    size: Count
    """Values a token, of all of these."""


class Block(Part):
    """How a head guesses several tokens at a call."""

    size: Annotated[int, Field(ge=2, le=64)]
    """Tokens that it reads after the context: the last known one, then masks."""
    mask_token: Annotated[int, Field(ge=0)]
    first_guess: Annotated[int, Field(ge=0, le=1)] = 1
    """The first of them whose scores are a guess, of the first token that is not known: 1, since
    each guesses its own place, or 0, where each guesses the place after it."""


class Head(Part):
    """Of a draft that reads the target's hidden states."""

    kind: Literal["eagle3", "dflash"]
    features: Count
    """Values a token that it reads of the target's hidden states."""
    hidden_size: Count
    """Values a token of its own; a head without a block gives and reads them again."""
    input_vocab_size: Count
    """Tokens that it reads; it guesses ``vocab_size``."""
    vocabulary: str | None = None
    """A file of the target's id of each token that it guesses, i32[vocab_size], little-endian;
    None: they are the same."""
    block: Block | None = None
    """Of a head that guesses several tokens at a call; None: one."""

    @model_validator(mode="after")
    def _blocks_are_of_a_kind(self) -> Self:
        if (self.kind == "dflash") != (self.block is not None):
            raise ValueError(f"a head of kind {self.kind} with block {self.block}")
        if self.block and self.block.mask_token >= self.input_vocab_size:
            raise ValueError(
                f"mask token {self.block.mask_token} is outside the vocabulary of "
                f"{self.input_vocab_size}"
            )
        return self


class TokenizerPart(Part):
    """How text becomes token ids."""

    file: File
    vocabulary_sha256: Sha256
    """Of the sorted (token, id) pairs: equal for models that can be paired."""
    stop_token_ids: list[int]
    special_tokens: dict[str, str]
    chat_template: str | None


class OwnTokenizer(Part):
    """Of a draft whose tokens are not the target's."""

    tokenizer: TokenizerPart
    translation: TranslationName
    """How its guesses become tokens of the target; see :mod:`specplug.drafters.universal`."""
    shared_tokens: Annotated[int, Field(ge=0)]
    """That both have."""
    agreement: Annotated[float, Field(ge=0, le=1)]
    """The share of the target's tokens of a text that are also the draft's, at their place."""


class ChosenLayers(Part):
    """How ``specplug tune --skip-layers`` chose a draft's layers, and what it measured."""

    prompts: Count
    prompts_sha256: Sha256
    """Of the prompts, a JSON list of strings."""
    answer_tokens: Count
    """Of the target's greedy answers to them."""
    seed: Annotated[int, Field(ge=0)]
    tried: Count
    """Sets of layers."""
    draft_tokens: Count
    """What a round has to draft for that speed."""
    chances: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1)]
    """That the i-th drafted token is right, given that those before it are."""
    tokens_per_second: Annotated[float, Field(gt=0)]
    plain_tokens_per_second: Annotated[float, Field(gt=0)]
    """Of plain decoding, at the same time."""
    machine: Annotated[str, Field(max_length=1000)]


TREE_TOLERANCE = 1e-3
"""Of a logit: what fp32's sums in another order may make of it."""


class Component(Part):
    """A model of the bundle: the target or the draft."""

    engine: Annotated[str, Field(max_length=100)] = "onnxruntime"
    dialect: Dialect = "ort"
    architecture: str
    precision: PrecisionName
    keep_fp32: Annotated[str, Field(max_length=1000)] | None = None
    """Regular expression over the weights' names: the layers that were left in fp32."""
    rounded_again: dict[str, Count] = Field(default_factory=dict)
    """In precision gguf: the tensors, by type, whose own blocks could not be kept."""
    parameters: Count
    graph: str
    files: Annotated[list[File], Field(min_length=1)]
    plans: list[TensorRTPlan] = Field(default_factory=list)
    """What TensorRT made of the graph."""
    continuations: str | None = None
    """A file of the likeliest continuations of every token, i32[vocab_size, n], little-endian."""
    vocab_size: Count
    max_length: Count
    min_width: Annotated[int, Field(ge=1, le=16)]
    """Smallest width whose rows do not depend on the width, as measured at export."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Of a draft that is the target itself: which of the target's layers it has. It may share the
    target's cache."""
    chosen: ChosenLayers | None = None
    """Of a draft with layers: how they were chosen; None: by hand."""
    hidden: HiddenOutput | None = None
    """Of a target whose draft is a head."""
    head: Head | None = None
    """Of a draft that is one."""
    own_tokenizer: OwnTokenizer | None = None
    """Of a draft with another tokenizer than the target's."""
    tree_difference: Annotated[float, Field(ge=0)] | None = None
    """The most that a logit of a token in a tree differed from the same in a chain, as measured at
    export; None: the graph takes no trees."""
    cache: CacheLayout
    parity: Parity
    quality: Quality | None
    provenance: Provenance

    @property
    def amplifies(self) -> bool:
        """Whether the order of sums becomes other text, sooner or later: activations are rounded
        to integers.
        """
        return self.precision not in ("fp32", "fp16", "bf16")

    @property
    def exact_trees(self) -> bool:
        """Whether a token in a tree scores as in a chain, but for the order of sums."""
        return (
            not self.amplifies
            and self.tree_difference is not None
            and self.tree_difference <= TREE_TOLERANCE
        )

    @model_validator(mode="after")
    def _calls_fit(self) -> Self:
        if self.min_width > self.max_length:
            raise ValueError(f"min_width {self.min_width}: at most max_length {self.max_length}")
        return self

    @model_validator(mode="after")
    def _what_runs_is_listed(self) -> Self:
        listed = {file.path for file in self.files}
        vocabulary = self.head.vocabulary if self.head else None
        plans = (plan.path for plan in self.plans)
        for path in (self.graph, self.continuations, vocabulary, *plans):
            if path is not None and path not in listed:
                raise ValueError(f"{path!r} is not among the component's files")
        return self


class Manifest(Part):
    """The whole of ``specplug.json``."""

    schema_version: Literal[1] = 1
    target: Component
    draft: Component | None = None
    tokenizer: TokenizerPart | None = None
    stop_token_ids: list[int] | None = None  # where no tokenizer names them

    @model_validator(mode="after")
    def _one_vocabulary(self) -> Self:
        # With a tokenizer the exporter compared every token; what is left may be padding.
        if self.target.own_tokenizer is not None:
            raise ValueError("the target's tokenizer is the bundle's: it has none of its own")
        if self.draft and self.draft.own_tokenizer:
            self._check_own_tokenizer(self.draft)
        elif self.draft and self.draft.head:
            self._check_head(self.draft.head, self.draft.vocab_size)
        elif not self.tokenizer and self.draft and self.draft.vocab_size != self.target.vocab_size:
            raise ValueError(
                f"draft vocabulary {self.draft.vocab_size} != target vocabulary "
                f"{self.target.vocab_size}: export a draft with the target's tokenizer"
            )
        return self

    def _check_own_tokenizer(self, draft: Component) -> None:
        if draft.head is not None or draft.layers is not None:
            raise ValueError("a draft that is a part of the target has no tokenizer of its own")
        if self.tokenizer is None:
            raise ValueError("the draft has a tokenizer and the target none: they share no text")

    def _check_head(self, head: Head, vocab_size: int) -> None:
        hidden, target = self.target.hidden, self.target
        if hidden is None or hidden.size != head.features or target.head is not None:
            raise ValueError(f"the target gives no hidden states of {head.features} values")
        if head.input_vocab_size != target.vocab_size or vocab_size > target.vocab_size:
            raise ValueError(
                f"the head reads {head.input_vocab_size} tokens and guesses {vocab_size}, and the "
                f"target has {target.vocab_size}"
            )
        if head.vocabulary is None and vocab_size != target.vocab_size:
            raise ValueError(f"nothing says which tokens the head's {vocab_size} are")

    @model_validator(mode="after")
    def _layers_are_the_targets(self) -> Self:
        if self.target.layers is not None:
            raise ValueError("the target's layers are its own")
        layers = self.draft.layers if self.draft else None
        if self.draft and layers is not None:
            cache, its_own = self.target.cache, self.draft.cache
            if len(layers) != its_own.layers or max(layers) >= cache.layers:
                raise ValueError(f"draft layers {layers} are not of the target's {cache.layers}")
            if self.draft.max_length > self.target.max_length:
                raise ValueError(
                    "the draft is a part of the target, whose cache it may share, and its "
                    f"max_length {self.draft.max_length} is beyond the target's "
                    f"{self.target.max_length}"
                )
        return self

    @model_validator(mode="after")
    def _what_ends_answers_is_a_token(self) -> Self:
        own = self.draft.own_tokenizer if self.draft else None
        of_target = (self.stop_token_ids, self.tokenizer and self.tokenizer.stop_token_ids)
        check_tokens(chain.from_iterable(ids or () for ids in of_target), self.target.vocab_size)
        if self.draft and own:
            check_tokens(own.tokenizer.stop_token_ids, self.draft.vocab_size)
        return self

    @model_validator(mode="after")
    def _each_file_is_one(self) -> Self:
        files = dict.fromkeys(self.all_files())
        check_distinct(file.path for file in files)
        known: set[str] = set()
        for file in files:
            if file.path in known:
                raise ValueError(f"{file.path!r} is listed with two sizes or hashes")
            known.add(file.path)
        return self

    def components(self) -> list[Component]:
        """The target, and the draft if there is one."""
        return [self.target, self.draft] if self.draft else [self.target]

    def all_files(self) -> list[File]:
        """Every file the manifest vouches for."""
        files = [file for component in self.components() for file in component.files]
        own = self.draft.own_tokenizer if self.draft else None
        tokenizers = (self.tokenizer, own.tokenizer if own else None)
        return [*files, *(part.file for part in tokenizers if part)]


class Bundle:
    """An opened bundle: its manifest, validated, over files that match it."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @classmethod
    @checked()
    def open(cls, path: str | Path) -> Self:
        """Read and check a bundle.

        Raises:
            BundleError: no bundle there, one this version cannot read, or one that was changed.
        """
        folder = Path(path)
        bundle = cls(folder, read_manifest(folder))
        for file in dict.fromkeys(bundle.manifest.all_files()):  # a draft may share the target's
            check_file(folder, file)
        for component in bundle.manifest.components():
            check_graph(folder / component.graph)
        return bundle

    def continuations(self) -> Int32Array | None:
        """The target's likeliest continuations of every token, i32[V, n], if export wrote them.

        Raises:
            BundleError: the file is not of this shape, or names tokens that there are not.
        """
        target = self.manifest.target
        if target.continuations is None:
            return None
        values = np.fromfile(self.path / target.continuations, dtype="<i4")
        if (
            not len(values)
            or len(values) % target.vocab_size
            or not 0 <= values.min() <= values.max() < target.vocab_size
        ):
            raise BundleError(
                f"{target.continuations} is no table of {target.vocab_size} tokens' continuations"
            )
        return values.reshape(target.vocab_size, -1)

    def head_vocabulary(self) -> Int32Array | None:
        """The target's id of each token that the bundle's head guesses, i32[n]; None: the same.

        Raises:
            BundleError: the file is not of this shape, or names a token twice or one that there is
                not.
        """
        draft = self.manifest.draft
        if draft is None or draft.head is None or draft.head.vocabulary is None:
            return None
        path = draft.head.vocabulary
        ids = np.fromfile(self.path / path, dtype="<i4")
        known = (ids >= 0) & (ids < self.manifest.target.vocab_size)
        if len(ids) != draft.vocab_size or not known.all() or len(np.unique(ids)) != len(ids):
            raise BundleError(f"{path} does not name {draft.vocab_size} tokens of the target")
        return ids

    def tokenizer(self) -> Tokenizer | None:
        """The bundle's tokenizer with its chat template, if it has one."""
        part = self.manifest.tokenizer
        return open_tokenizer(self.path, part) if part else None

    def draft_tokenizer(self) -> Tokenizer | None:
        """The draft's, where that is another."""
        draft = self.manifest.draft
        own = draft.own_tokenizer if draft else None
        return open_tokenizer(self.path, own.tokenizer) if own else None


def open_tokenizer(folder: Path, part: TokenizerPart) -> Tokenizer:
    """The tokenizer that a manifest describes."""
    return Tokenizer(
        folder / part.file.path,
        stop_token_ids=part.stop_token_ids,
        chat_template=part.chat_template,
        special_tokens=part.special_tokens,
    )


def write_manifest(folder: Path, manifest: Manifest, name: str = MANIFEST) -> None:
    """Write ``specplug.json``; the last file to be written, so a folder without it is no bundle."""
    text = json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / name).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """What a bundle says of itself, its files not looked at.

    Raises:
        BundleError: there is no manifest, or none that this version can read.
    """
    path = folder / MANIFEST
    if not path.is_file():
        if folder.suffix == ".gguf" or (folder / "config.json").is_file():
            raise BundleError(
                f"{folder} is not a bundle but a checkpoint: make one of it with "
                f"specplug export {folder} NAME.bundle"
            )
        raise BundleError(
            f"{folder} is not a bundle: it has no {MANIFEST}; make one with specplug export"
        )
    if path.stat().st_size > _LARGEST_MANIFEST:
        raise BundleError(f"{MANIFEST} is larger than {_LARGEST_MANIFEST} bytes: not read")
    try:
        # Looked at before the schema, which only knows its own version's fields.
        version = json.loads(path.read_bytes())["schema_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BundleError(f"{MANIFEST} is damaged: {error}; export the model again") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{MANIFEST} has schema version {version!r} and this specplug reads "
            f"{SCHEMA_VERSION}: export the model again, or update specplug"
        )
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError(f"{MANIFEST} is damaged at {first_fault(error)}") from error
