"""Special tokens of a GGUF file: their kinds, their roles, and which of them end an answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokenizers import AddedToken

from specplug.export.gguf_pretokenizers import TYPES

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

ROLES = ("bos", "eos", "eot", "eom", "unknown", "padding", "fim_pad", "fim_rep", "fim_sep")
"""Tokens that ``tokenizer.ggml.ROLE_token_id`` names, and that are read."""

END_TEXTS = (
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
    "[e~[",
)
"""Tokens that llama.cpp takes for the end of an answer by their text."""

FILL_IN_TEXTS = {
    "fim_pre": (
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<\uff5cfim\u2581begin\uff5c>",
        "<PRE>",
        "\u2581<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ),
    "fim_suf": (
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<\uff5cfim\u2581hole\uff5c>",
        "<SUF>",
        "\u2581<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ),
    "fim_mid": (
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<\uff5cfim\u2581end\uff5c>",
        "<MID>",
        "\u2581<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}
"""Tokens that llama.cpp takes for those of fill-in-the-middle by their text."""

_ENDING_FILL_IN = ("fim_pad", "fim_rep", "fim_sep")
_ALWAYS_TEXT = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
_KEYS = {"fim_pre": "prefix", "fim_suf": "suffix", "fim_mid": "middle"}  # as they were called
_DEFAULTS = {"bos": 1, "eos": 2, "unknown": 0}  # of SentencePiece


class SpecialTokens:
    """The tokens of a vocabulary by id, with llama.cpp's reading of their kinds.

    Raises:
        ValueError: a list is missing or too short, two tokens are the same, or a role names none.
    """

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        tokens = metadata.get("tokenizer.ggml.tokens")
        if not isinstance(tokens, list) or not tokens:
            raise ValueError("tokenizer.ggml.tokens is missing")
        self.texts = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
        self.ids = {token: number for number, token in enumerate(self.texts)}
        if len(self.ids) != len(self.texts):
            number = next(n for n, token in enumerate(self.texts) if self.ids[token] != n)
            token = self.texts[number]
            raise ValueError(f"tokens {number} and {self.ids[token]} are both {token!r}")
        kinds = metadata.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
        if len(kinds) < len(tokens):
            raise ValueError(f"tokenizer.ggml.token_type has {len(kinds)} for {len(tokens)} tokens")
        self._kinds = list(kinds[: len(tokens)])
        self._control: set[int] = set()  # by their text, whatever their kind
        self._ends = self._find_ends()

    def role(self, name: str) -> int | None:
        """The token of a role; None if the file names none.

        Raises:
            ValueError: a token that begins or ends a text is out of range.
        """
        keys = [f"tokenizer.ggml.{name}_token_id"]
        if name in _KEYS:
            keys.append(f"tokenizer.ggml.{_KEYS[name]}_token_id")
        number = next((self._metadata[key] for key in keys if key in self._metadata), None)
        if type(number) is int and 0 <= number < len(self.texts):
            return number
        # Converters write that there is none as -1, and padding as a token too many.
        if number not in (None, -1, 0xFFFFFFFF) and name in ("bos", "eos", "eot", "eom"):
            raise ValueError(f"{keys[0]} is {number!r}, and there are {len(self.texts)} tokens")
        pieces = self._metadata.get("tokenizer.ggml.model") == "llama"
        default = _DEFAULTS.get(name, len(self.texts)) if pieces else len(self.texts)
        return default if default < len(self.texts) else None

    def is_normal(self, number: int) -> bool:
        """Whether a token is a piece of text, and nothing else."""
        return self._kinds[number] == NORMAL and number not in self._control

    def is_unused(self, number: int) -> bool:
        """Whether a token has no text."""
        return self._kinds[number] in (0, UNUSED) and number not in self._control

    def user_defined(self) -> list[int]:
        """Tokens that are found whole in a text and are text themselves."""
        return [n for n, kind in enumerate(self._kinds) if kind == USER_DEFINED]

    def ends(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return self._ends

    def roles(self) -> dict[str, str]:
        """Texts by the role's name in chat templates."""
        names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token"}
        names["padding"] = "pad_token"
        found = {name: self.role(role) for role, name in names.items()}
        return {name: self.texts[n] for name, n in found.items() if n is not None}

    def added(self) -> list[AddedToken]:
        """The tokens that are found whole in a text, whatever the rule would cut."""
        strip = self._strips()
        made = []
        for number, (text, kind) in enumerate(zip(self.texts, self._kinds, strict=True)):
            special = kind in (UNKNOWN, CONTROL) or number in self._control
            if special or kind == USER_DEFINED:
                made.append(
                    AddedToken(text, special=special, normalized=False, rstrip=text in strip)
                )
        return made

    def around(self) -> tuple[tuple[str, int] | None, tuple[str, int] | None]:
        """The tokens that are put before and after a text.

        Raises:
            ValueError: there is to be one, and the file does not say which.
        """
        pieces = self._metadata.get("tokenizer.ggml.model") == "llama"
        named = TYPES.get(self._metadata.get("tokenizer.ggml.pre") or "default")
        adds = {"bos": pieces or (named is not None and named.add_bos), "eos": False}
        made: list[tuple[str, int] | None] = []
        for role, otherwise in adds.items():
            key = f"tokenizer.ggml.add_{role}_token"
            if not self._metadata.get(key, otherwise):
                made.append(None)
                continue
            number = self.role(role)
            if number is None:
                raise ValueError(f"{key} is set, and tokenizer.ggml.{role}_token_id is missing")
            made.append((self.texts[number], number))
        return made[0], made[1]

    def _strips(self) -> set[str]:
        """Phi-3's tokens take the spaces after them along."""
        name = str(self._metadata.get("general.name", "")).lower()
        if "phi-3" not in name and "phi3" not in name:
            return set()
        return set(self.texts) - {"<unk>", "<s>", "<|endoftext|>"}

    def _find_ends(self) -> frozenset[int]:
        ends = set()
        for role, texts in FILL_IN_TEXTS.items():
            number = self.role(role)
            if number is None:
                number = next((self.ids[text] for text in texts if text in self.ids), None)
                if number is not None:
                    self._control.add(number)
            if number is not None and role in _ENDING_FILL_IN:
                ends.add(number)
        for text in END_TEXTS:
            if text in self.ids:
                ends.add(self.ids[text])
                self._control.add(self.ids[text])
        for text in _ALWAYS_TEXT:
            if text in self.ids:
                self._make(text, USER_DEFINED)
        ends.update(n for n in map(self.role, ("eos", "eot", "eom")) if n is not None)
        return frozenset(self._without_exceptions(ends))

    def _without_exceptions(self, ends: set[int]) -> set[int]:
        texts = {self.texts[number] for number in ends}
        calls = bool(texts & {"<|call|>", "<|calls|>"})
        if "<|end|>" in texts and calls and texts & {"<|return|>", "<|flush|>"}:
            ends.discard(self.ids["<|end|>"])  # it ends a part of an answer there
            self._make("<|end|>", USER_DEFINED)
        if "</s>" in texts and texts & {"<|tool_response>", "<|plamo:eos|>"}:
            ends.discard(self.ids["</s>"])  # a piece of HTML there
            self._make("</s>", NORMAL)
        return ends

    def _make(self, text: str, kind: int) -> None:
        self._kinds[self.ids[text]] = kind
        self._control.discard(self.ids[text])
