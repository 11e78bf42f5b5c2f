"""llama.cpp's pre-tokenizer types (``tokenizer.ggml.pre``) as pre-tokenizers of ``tokenizers``.

A rule is a sequence of expressions, each of which cuts the pieces that the one before left: what
it matches becomes a piece, and so does what lies between two matches. The categories are as
llama.cpp computes them: outside of ASCII no letter is of one case only.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_CASES = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_TAIL = rf" ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# As in the tokenizer.json of Llama 3 and Qwen 2, letter for letter: the C++ runtime knows these.
_LLAMA3 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"
_QWEN2 = rf"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"

_DIGIT = r"\p{N}"
# Groups of three from the right, the first of them together with the text before.
_THOUSANDS = r"\P{N}*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"
_KANA = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_EAST = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff&&[^\\s]]+"
_SIGNS = r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"
_MARKED = rf"{_SIGNS}[A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+| ?[\p{{P}}\p{{S}}]+"
_WORDS = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"
_CJK = (
    "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f"
    "\u2f00-\u2fdf\u0e40-\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f"
    "\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+"
)
_YOUTU = (
    "[\uac00-\ud7a3\u3131-\u318e]+"
    "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
    f"|[\u3105-\u312f]+|{_KANA}"
)
_DEEPSEEK_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5"
    "\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59"
    "\u1f5b\u1f5d\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc"
    "\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107"
    "\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee"
    "\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e"
    "\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f"
    "\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2"
    "\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_HAN = (
    "\u4e00-\u9fff\u3400-\u4dbf\U00020000-\U0002a6df\U0002a700-\U0002ebef"
    "\uf900-\ufaff\U0002f800-\U0002fa1f"
)
_LATIN = rf"[\p{{L}}&&[^{_HAN}]]"


def _cased(letters: str, ending: str, digits: str) -> str:
    """Words that change once from upper to lower case."""
    upper, lower = f"[{letters}&&[^a-z]]", f"[{letters}&&[^A-Z]]"
    before = r"[^\r\n\p{L}\p{N}]?"
    words = f"{before}{upper}*{lower}+{ending}|{before}{upper}+{lower}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


@dataclass(frozen=True, slots=True)
class PreType:
    """A pre-tokenizer type, and what else llama.cpp ties to it."""

    rule: tuple[str, ...]
    ignore_merges: bool = False
    """Whether a piece that is a token is that token, whatever the merges would make of it."""
    add_bos: bool = False
    """Whether the beginning token is added where the file does not say."""


_WITH_DIGITS = PreType((_DIGIT, _GPT2))
_PLAIN = PreType((_GPT2,))
_QWEN = PreType((_QWEN2,))
_LLAMA = PreType((_LLAMA3,), ignore_merges=True, add_bos=True)
_DEEPSEEK3 = PreType((r"\p{N}{1,3}", _KANA, rf"{_MARKED}[\r\n]*|{_SPACES}"))
_GPT4O = PreType((_cased(r"\p{L}", f"{_CASES}?", r"\p{N}{1,3}"),))
_BLOOM = PreType((_WORDS,))
_BAILING = PreType(
    (
        r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
    )
)
_AYA = PreType(
    (
        _THOUSANDS,
        rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CASES}?|\p{{N}}{{1,3}}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    )
)

TYPES: dict[str, PreType] = {
    "default": PreType((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(
        (
            "llama3",
            "llama-v3",
            "llama-bpe",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ),
        _LLAMA,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe"), PreType((_LLAMA3,))),
    **dict.fromkeys(("glm4", "glm5"), PreType((_LLAMA3,), ignore_merges=True)),
    **dict.fromkeys(
        (
            "qwen2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "stablelm2",
            "hunyuan",
            "solar-open",
            "grok-2",
        ),
        _QWEN,
    ),
    "qwen35": PreType(
        (
            rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
        )
    ),
    **dict.fromkeys(
        (
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "gigachat",
            "jina-v2-es",
            "jina-v2-de",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "exaone4",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "mpt",
            "olmo",
            "jais",
            "trillion",
            "granite-docling",
        ),
        _PLAIN,
    ),
    **dict.fromkeys(
        (
            "smollm",
            "starcoder",
            "refact",
            "command-r",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ),
        _WITH_DIGITS,
    ),
    "jais-2": PreType(
        (
            rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)"
            r"|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
        )
    ),
    "deepseek-llm": PreType(
        (
            r"[\r\n]",
            rf"\s?[{_DEEPSEEK_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3001-\u3002]+",
            r"\s+\z",
            _EAST,
            r"\p{N}+",
        )
    ),
    "deepseek-coder": PreType((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST, _DIGIT)),
    **dict.fromkeys(("deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"), _DEEPSEEK3),
    "spark2_5": PreType(
        (r"\p{N}{1,3}", _KANA, rf"{_MARKED}|[\r\n]|\s+(?!\S)|\s+", _DIGIT),
    ),
    "youtu": PreType(
        (
            _YOUTU,
            rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_CASES}?|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
        ),
        ignore_merges=True,
    ),
    "falcon": PreType((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, "[0-9][0-9][0-9]")),
    **dict.fromkeys(("poro-chat", "bloom", "gpt3-finnish"), _BLOOM),
    "viking": PreType((_WORDS, _DIGIT)),
    "tekken": PreType(
        (_cased(r"\p{L}", "", _DIGIT),),
        ignore_merges=True,
        add_bos=True,
    ),
    "chameleon": PreType(
        (
            "<sentinel:[0-9]+>",
            "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
            r"([\t\n]|    |  )",
            _DIGIT,
            r"[\p{P}!-/:-@\[-`{-~]",
            _GPT2,
        ),
        add_bos=True,
    ),
    **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
    "granite-embed-multi-97m": PreType(
        (_cased(r"\p{L}\p{M}", f"{_CASES}?", r"\p{N}{1,3}"),), ignore_merges=True
    ),
    **dict.fromkeys(("tiny_aya", "cohere2moe"), _AYA),
    "kimi-k2": PreType(
        (rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?{_LATIN}+{_CASES}?|\p{{N}}{{1,3}}|{_TAIL}",)
    ),
    "superbpe": PreType((r"\p{N}+", "(?=([0-9]{3})+(?![0-9]))")),
    **dict.fromkeys(("bailingmoe", "bailingmoe2", "llada-moe"), _BAILING),
    "seed-coder": PreType(
        (
            rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
            rf"| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}",
        )
    ),
    "ufakzeka": PreType((rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}",)),
    "afmoe": PreType((_THOUSANDS, _CJK, rf"{_MARKED}[\r\n]*|{_SPACES}")),
    "laguna": PreType((r"[^\n]+|[\n]+", _QWEN2)),
    "exaone-moe": PreType(
        (
            rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
            r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
        )
    ),
    "minicpm5": PreType(
        (
            r"\p{N}{1,3}",
            rf"{_CASES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_TAIL}",
        ),
        ignore_merges=True,
    ),
}
"""By the name in the file."""

_RAW = "it cuts the text's own characters, in a vocabulary that is not of bytes"
REFUSED = {
    "gemma4": _RAW,
    "granite-embed-multi-311m": _RAW,
    "sarvam-moe": _RAW,
    "whitespace": _RAW,
}
"""Types of llama.cpp that are not read, with the reason."""


def pre_type(name: str) -> PreType:
    """A pre-tokenizer type by its name.

    Raises:
        ValueError: one that is not read, or not known.
    """
    if name in REFUSED:
        raise ValueError(f"pre-tokenizer {name!r} is not supported: {REFUSED[name]}")
    if name not in TYPES:
        raise ValueError(f"pre-tokenizer {name!r} is not known: have {', '.join(sorted(TYPES))}")
    return TYPES[name]


def pre_tokenizer(rule: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    """A rule as a pre-tokenizer, which leaves the bytes in GPT-2's letters."""
    last = rule[-1] == _GPT2
    steps: list[pre_tokenizers.PreTokenizer] = [
        pre_tokenizers.Digits(individual_digits=True)
        if expression == _DIGIT
        else pre_tokenizers.Split(Regex(expression), behavior="isolated")
        for expression in (rule[:-1] if last else rule)
    ]
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=last))
    return steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
