"""llama.cpp as the judge of how GGUF files are read, and tiny GGUF files to judge."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGUFValueType
from tokenizers import pre_tokenizers

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".peers" / "llama" / "venv" / "bin" / "python"
REFERENCES = ROOT / "tests" / "data" / "llama"
HOW = "no llama.cpp in .peers: run benchmarks/peers/setup.sh llama, which takes about 15 minutes"

Ask = Callable[[Mapping[str, Any]], dict[str, Any]]


def is_there() -> bool:
    """Whether llama.cpp's environment has been made."""
    return PYTHON.exists()


@contextmanager
def judge() -> Iterator[Ask]:
    """A process with llama.cpp in it, which answers questions about files."""
    command = [str(PYTHON), str(ROOT / "tests" / "golden" / "llama_judge.py")]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin
        assert process.stdout

        def ask(question: Mapping[str, Any]) -> dict[str, Any]:
            assert process.stdin
            assert process.stdout
            process.stdin.write(json.dumps(question) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline() or '{"error": "llama.cpp aborts"}')
            if "logits" in answer:
                data = np.frombuffer(base64.b64decode(answer["logits"]), np.float32)
                answer["logits"] = data.reshape(answer["shape"])
            return answer

        yield ask
        process.stdin.close()


def letters(text: str) -> str:
    """A text's bytes in the letters of byte-level BPE."""
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return "".join(piece for piece, _ in pre.pre_tokenize_str(text))


def shuffled(items: Sequence[str], seed: str) -> list[str]:
    """Items in an order that looks random and is the same everywhere."""
    return sorted(items, key=lambda item: hashlib.sha256((seed + item).encode()).digest())


TEXTS: list[str] = json.loads((REFERENCES / "texts.json").read_bytes())
"""Texts in which the rules of pre-tokenizers differ."""

_PAIRED = "aAbesStlLvVrREdDmM \n\r\t0123'.,!?-/_(<$=`\\\""
"""Letters of which every two make a token, so that it shows where a rule cuts."""


@cache
def byte_level_vocabulary() -> tuple[list[str], list[str]]:
    """Tokens and merges that join whatever a rule leaves together, as far as 4 bytes."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())]
    known, merges = set(tokens), []

    def merge(left: str, right: str) -> None:
        merges.append(f"{left} {right}")
        if left + right not in known:
            known.add(left + right)
            tokens.append(left + right)

    for text in TEXTS:
        for character in sorted(set(text)):
            parts = letters(character)
            for cut in range(1, len(parts)):
                if f"{parts[:cut]} {parts[cut]}" not in merges:
                    merge(parts[:cut], parts[cut])
    units = [letters(character) for character in _PAIRED]
    for pair in shuffled([f"{a} {b}" for a in units for b in units], "pairs"):
        merge(*pair.split(" "))
    seen = {text[n : n + 2] for text in TEXTS for n in range(len(text) - 1) if len(text) > 3}
    for pair in shuffled(sorted(seen), "seen"):
        left, right = map(letters, pair)
        if f"{left} {right}" not in merges:
            merge(left, right)
    for left, right in ((2, 1), (4, 2), (4, 4), (8, 4), (8, 8)):
        merge("\u0120" * left, "\u0120" * right)
    fours = {text[n : n + 4] for text in TEXTS for n in range(len(text) - 3)}
    for four in shuffled(sorted(fours), "fours"):
        left, right = letters(four[:2]), letters(four[2:])
        if left in known and right in known and f"{left} {right}" not in merges:
            merge(left, right)
    return tokens, merges


def write_file(
    path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Any] | None = None
) -> None:
    """A GGUF file of some metadata and tensors."""
    writer = gguf.GGUFWriter(path, keys.get("general.architecture", "llama"))
    add_keys(writer, keys)
    for name, tensor in (tensors or {}).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_keys(writer: gguf.GGUFWriter, keys: Mapping[str, Any]) -> None:
    """Metadata of every kind that Python's types tell."""
    for key, value in keys.items():
        if key == "general.architecture":
            continue
        if key == "general.alignment":
            writer.add_custom_alignment(value)
            continue
        if key.endswith("token_type"):
            writer.add_token_types(value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_key_value(key, value, GGUFValueType.UINT32)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)


def byte_level_keys(pre: str | None, **more: Any) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary; ``more`` goes under ``tokenizer.ggml.``."""
    tokens, merges = byte_level_vocabulary()
    keys = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": [*tokens, "<|begin|>", "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3, 3],
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": len(tokens),
        "tokenizer.ggml.eos_token_id": len(tokens) + 1,
    }
    if pre is not None:
        keys["tokenizer.ggml.pre"] = pre
    return keys | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


@cache
def pieces_keys(spaces: str = "  ", **more: Any) -> dict[str, Any]:
    """Metadata of a SentencePiece vocabulary with byte tokens; ``spaces`` is one that the
    user defined; ``more`` goes under ``tokenizer.ggml.``."""
    marked = [text.replace(" ", "\u2581") for text in TEXTS]
    characters = sorted({c for text in marked for c in text if ord(c) < 0x3000} - {"\n", "\u00c6"})
    parts = {
        text[n : n + size] for text in marked for size in (2, 3, 4, 6) for n in range(len(text))
    }
    longer = [part for part in sorted(parts) if len(part) > 1 and set(part) <= set(characters)]
    longer = shuffled(longer, "pieces")[:3000]
    special = ["<unk>", "<s>", "</s>"]
    own = ["<|user|>", "[INST]", spaces, "<tool>"]
    tokens = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *own]
    longer = [part for part in longer if part not in tokens]
    kinds = [2, 3, 3, *[6] * 256, 3, 3, 4, 4, *[1] * (len(longer) + len(characters))]
    pieces = [*longer, *characters]
    keys = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens + pieces,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.scores": [0.0] * len(tokens) + [-1.0 - n for n in range(len(pieces))],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return keys | {f"tokenizer.ggml.{key}": value for key, value in more.items()}


SPECIALS = {
    "<|user|>": 4,
    "<tool>": 3,
    "  ": 4,
    "\u00e9t\u00e9": 3,
    "[PAD1]": 5,
    "<|channel|>": 3,
    "<|end|>": 1,
    "<|fim_pad|>": 1,
    "<reponame>": 1,
    "<unk>": 2,
    "<|return|>": 3,
    "<|call|>": 3,
    "<|eom_id|>": 3,
    "[PAD2]": 5,
}
"""Tokens with their kinds, some of which llama.cpp reads as another kind by their text."""


def with_tokens(keys: dict[str, Any], tokens: Mapping[str, int]) -> dict[str, Any]:
    """The metadata with further tokens, by their kind."""
    new = {token: kind for token, kind in tokens.items() if token not in keys[_TOKENS]}
    more = {_TOKENS: [*keys[_TOKENS], *new], _KINDS: [*keys[_KINDS], *new.values()]}
    if _SCORES in keys:
        more[_SCORES] = keys[_SCORES] + [0.0] * len(new)
    return keys | more


_TOKENS, _KINDS, _SCORES = (f"tokenizer.ggml.{name}" for name in ("tokens", "token_type", "scores"))


@cache
def vocabularies() -> dict[str, dict[str, Any]]:
    """Metadata by a name: of both kinds, with every flag and kind of token."""
    plain = {"<s>": 3, "</s>": 3}
    ends = dict.fromkeys(("<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<EOT>", "[EOS]"), 3)
    html = {"</s>": 1, "<|tool_response>": 3}
    return {
        "pieces": pieces_keys(),
        "pieces, no space before": pieces_keys(add_space_prefix=False),
        "pieces, an end and no beginning": pieces_keys(add_bos_token=False, add_eos_token=True),
        "pieces, Phi-3": with_tokens(pieces_keys("<|sys|>"), {"<|endoftext|>": 3, "<|end|>": 3})
        | {"general.name": "Phi-3 mini"},
        "pieces, specials": with_tokens(pieces_keys(eot_token_id=260), SPECIALS),
        "bytes": with_tokens(byte_level_keys("gpt-2"), plain),
        "bytes, specials": with_tokens(byte_level_keys("smollm", add_bos_token=True), SPECIALS),
        "bytes, merges ignored": with_tokens(byte_level_keys("llama-bpe"), SPECIALS | ends),
        "bytes, an end": with_tokens(byte_level_keys("qwen2", add_eos_token=True), html),
        "bytes, ends named": byte_level_keys("qwen2", eot_token_id=300, eom_token_id=301),
        "bytes, fill-in named": byte_level_keys("qwen2", fim_pad_token_id=302, fim_rep_token_id=9),
    }


SPECIAL_TEXTS = [
    "",
    "<s>",
    "<s>a",
    " <s> a </s> b",
    "<tool> x",
    "<|user|>hi<|user|> hi  <tool>\n",
    "[INST] a [/INST]",
    "<|fim_pad|>a<|end|>  b<|channel|><reponame>[PAD1]  x \u00e9t\u00e9 <|return|><unk>",
    "<|im_end|>  <|begin|>\n<|end|> c<|endoftext|> d",
    "<0x0A>\u2581 \u2581",
]
"""Texts with special tokens in them."""


def digest(pieces: Sequence[bytes]) -> str:
    """Of all tokens' texts in one."""
    return hashlib.sha256(b"\n".join(pieces)).hexdigest()
