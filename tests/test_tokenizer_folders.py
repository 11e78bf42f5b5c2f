"""Tokenizers of folders: a bundle's tokens are those that the folder's own tools give."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers.decoders import Metaspace as MetaspaceDecoder

from specplug import ExportError, Tokenizer
from specplug.export.tokenizer_folder import folder_tokenizer
from specplug.export.tokenizer_texts import TEXTS
from specplug.export.tokenizers import encoder, write_tokenizer
from tests_support.made_tokenizers import TEXT
from tests_support.made_tokenizers import byte_level as made_byte_level
from tests_support.made_tokenizers import sentencepiece as made_sentencepiece
from tests_support.tiny import CHAT_TEMPLATE

VOCAB = 1000
WORDS = st.sampled_from([*TEXTS, *TEXT.split(), "<|end|>", "<|user|>", "<x>", " ", "\n", "1", "▁"])
ANY_TEXT = st.lists(WORDS | st.text(max_size=6), max_size=8).map("".join)


def byte_level() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(made_byte_level(60).to_str())


def with_digits() -> tokenizers.Tokenizer:
    """SmolLM2's way to split a text."""
    made = byte_level()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    return made


def with_begin_and_end() -> tokenizers.Tokenizer:
    made = byte_level()
    made.add_special_tokens(["<s>"])
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>",
        special_tokens=[(token, made.token_to_id(token)) for token in ("<s>", "<|end|>")],
    )
    return made


def with_odd_tokens() -> tokenizers.Tokenizer:
    """Added tokens that take spaces with them, stand alone, or are found after normalization."""
    made = byte_level()
    made.normalizer = normalizers.NFC()
    made.add_tokens(
        [
            AddedToken("<l>", lstrip=True, normalized=False),
            AddedToken("<r>", rstrip=True, normalized=False),
            AddedToken("fox", single_word=True, normalized=True),
            AddedToken("caf\u00e9", normalized=True),
            AddedToken("<plain>", normalized=False, special=False),
        ]
    )
    return made


def of_sentencepiece() -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_str(made_sentencepiece(200).to_str())


def unigram() -> tokenizers.Tokenizer:
    pieces = [("<unk>", 0.0), ("▁", -2.0), *((f"<0x{b:02X}>", -20.0) for b in range(256))]
    pieces += [
        (piece, -3.0 - i / 9) for i, piece in enumerate(["▁the", "▁fox", "o", "x", "1", "▁q"])
    ]
    made = tokenizers.Tokenizer(models.Unigram(pieces, 0, True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = MetaspaceDecoder()
    made.add_special_tokens(["<|end|>"])
    return made


def word_pieces() -> tokenizers.Tokenizer:
    vocabulary = {
        piece: i for i, piece in enumerate(["[UNK]", "the", "fox", "##es", "##1", "a", "##b"])
    }
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = tokenizers.decoders.WordPiece()
    made.add_special_tokens(["<|end|>"])
    return made


KINDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level,
    "digits": with_digits,
    "framed": with_begin_and_end,
    "odd": with_odd_tokens,
    "sentencepiece": of_sentencepiece,
    "unigram": unigram,
    "word-pieces": word_pieces,
}
CLASSES = ("PreTrainedTokenizerFast", "GPT2Tokenizer", "LlamaTokenizerFast", "Unheard", None)


def write_folder(
    folder: Path, tokenizer: tokenizers.Tokenizer | None, model: str = "llama", **config: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    if tokenizer is not None:
        tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    settings = {"eos_token": "<|end|>", "chat_template": CHAT_TEMPLATE} | config
    settings = {name: value for name, value in settings.items() if value is not ...}
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def bundled(folder: Path, place: Path) -> Tokenizer:
    """The tokenizer of a folder, by way of a bundle."""
    made = folder_tokenizer(folder, VOCAB)
    assert made is not None
    place.mkdir(parents=True, exist_ok=True)
    part = write_tokenizer(made, place)
    return Tokenizer(
        place / part.file.path,
        stop_token_ids=part.stop_token_ids,
        chat_template=part.chat_template,
        special_tokens=part.special_tokens,
    )


def limit(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    tokenizer.enable_truncation(32)
    tokenizer.enable_padding(length=40, pad_id=3, pad_token="x")
    if hasattr(tokenizer.model, "dropout"):
        tokenizer.model.dropout = 0.9
    return tokenizer


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, Tokenizer]:
    """transformers' tokenizer of a folder, and ours of the same with limits of its training."""
    place = tmp_path_factory.mktemp(request.param)
    make = KINDS[request.param]
    named = {"tokenizer_class": "PreTrainedTokenizerFast"}
    plain = write_folder(place / "plain", make(), **named)
    limited = write_folder(place / "limited", limit(make()), **named)
    judge = transformers.AutoTokenizer.from_pretrained(plain, local_files_only=True)
    return judge, bundled(limited, place / "bundle")


@given(text=ANY_TEXT)
@settings(max_examples=60)
def test_tokens_are_those_of_transformers(pair: tuple[Any, Tokenizer], text: str) -> None:
    judge, ours = pair
    assert ours.encode(text) == judge(text).input_ids
    tokens = judge(text, add_special_tokens=False).input_ids
    assert ours.encode(text, special_tokens=False) == tokens
    assert ours.decode(tokens) == judge.decode(tokens, skip_special_tokens=True)
    messages = [{"role": "user", "content": text}]
    chat = judge.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert ours.encode_prompt(messages) == chat


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("kind", ["digits", "sentencepiece", "odd"])
def test_the_file_decides_and_no_class(kind: str, name: str | None, tmp_path: Path) -> None:
    """``GPT2Tokenizer`` of transformers 5 keeps the vocabulary, and loses SmolLM2's digits."""
    folder = write_folder(tmp_path / "a", KINDS[kind](), tokenizer_class=name or ...)
    ours = bundled(folder, tmp_path / "b")
    judge = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        assert ours.encode(text) == judge.encode(text).ids


def test_digits_are_split_singly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "a", with_digits(), tokenizer_class="GPT2Tokenizer")
    ours = bundled(folder, tmp_path / "b")
    assert ours.encode("a 123") == [*ours.encode("a "), *map(ours.backend.token_to_id, "123")]


def test_limits_are_off_in_bundles_made_already(tmp_path: Path) -> None:
    """500 characters are 500 tokens, in whatever opens the file."""
    text = "z" * 500
    limit(byte_level()).save(str(tmp_path / "tokenizer.json"))
    ours = Tokenizer(tmp_path / "tokenizer.json")
    assert len(ours.encode(text)) == 500
    assert ours.encode("z") == byte_level().encode("z").ids
    again = ours.for_grammars(ours.backend.get_vocab_size(), (0,))
    assert len(again.tokenize_str(text)) == 500

    source = folder_tokenizer(write_folder(tmp_path / "folder", limit(byte_level())), VOCAB)
    assert source is not None
    old = json.loads(source.json) | {
        "truncation": json.loads(limit(byte_level()).to_str())["truncation"]
    }
    object.__setattr__(source, "json", json.dumps(old))
    encode = encoder(source)
    assert encode is not None
    assert len(encode(text)) == 500


# --- end tokens, names, templates --------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, [316]),
        ({"eos_token_id": 7}, None, [7, 316]),
        ({"eos_token_id": None}, {"eos_token_id": None}, [316]),
        ({"eos_token_id": [7, 8]}, {"eos_token_id": [8, 9, 316]}, [7, 8, 9, 316]),
        ({"eos_token_id": 7, "text_config": {"eos_token_id": [3]}}, {}, [7, 3, 316]),
        ({}, {"eos_token_id": 0}, [0, 316]),
    ],
)
def test_end_tokens_are_what_any_file_says(
    config: dict, generation: dict | None, expected: list[int], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, byte_level())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"} | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    made = folder_tokenizer(folder, VOCAB)
    assert made is not None
    assert list(made.stop_token_ids) == expected


def test_end_tokens_need_not_be_special(tmp_path: Path) -> None:
    made = byte_level()
    made.add_tokens([AddedToken("<turn>", special=False)])
    folder = write_folder(tmp_path, made, eos_token="<turn>")
    found = folder_tokenizer(folder, VOCAB)
    assert found is not None
    assert found.stop_token_ids == (made.token_to_id("<turn>"),)


@pytest.mark.parametrize(
    ("file", "said", "message"),
    [
        (
            "config.json",
            {"eos_token_id": 1000},
            r"config\.json says that token 1000 ends an answer",
        ),
        ("config.json", {"eos_token_id": "</s>"}, r"token '</s>' ends .* tokens 0 to 999"),
        ("generation_config.json", {"eos_token_id": [1, -1]}, r"generation_config\.json .*-1"),
        ("generation_config.json", {"eos_token_id": True}, r"token True"),
    ],
)
def test_end_tokens_outside_the_vocabulary(
    file: str, said: dict, message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path, byte_level())
    (folder / file).write_text(json.dumps({"model_type": "llama"} | said))
    with pytest.raises(ExportError, match=message):
        folder_tokenizer(folder, VOCAB)


def test_names_that_only_the_class_knows(tmp_path: Path) -> None:
    """GPT-2's own folder names no special token; its class does."""
    made = tokenizers.Tokenizer.from_str(made_byte_level(60, ("<|endoftext|>",)).to_str())
    folder = write_folder(tmp_path, made, "gpt2", eos_token=...)
    found = folder_tokenizer(folder, VOCAB)
    assert found is not None
    assert found.special_tokens["eos_token"] == "<|endoftext|>"
    assert found.stop_token_ids == (made.token_to_id("<|endoftext|>"),)


@pytest.mark.parametrize(
    ("said", "files", "expected"),
    [
        ("a", {}, "a"),
        ("a", {"chat_template.jinja": "b"}, "b"),
        ([{"name": "default", "template": "c"}, {"name": "tools", "template": "d"}], {}, "c"),
        ("a", {"chat_template.jinja": "b", "additional_chat_templates/rag.jinja": "e"}, "b"),
        (..., {"chat_template.json": json.dumps({"chat_template": "f"})}, "f"),
        ("a", {"chat_template.json": json.dumps({"chat_template": "f"})}, "a"),
        (..., {}, None),
    ],
)
def test_chat_templates(said: Any, files: dict[str, str], expected: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path, byte_level(), chat_template=said)
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    found = folder_tokenizer(folder, VOCAB)
    assert found is not None
    assert found.chat_template == expected
    if "chat_template.json" not in files:  # which transformers' processors read, and others
        judge = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert expected == (judge.get_chat_template() if judge.chat_template else None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"split_special_tokens": True}, "split_special_tokens: true"),
        ({"add_prefix_space": True}, r"add_prefix_space: true, and tokenizer\.json false"),
        ({"chat_template": {"tools": "x"}}, "names tools, and none of the name default"),
        ({"chat_template": 5}, "chat_template is 5"),
        ({"added_tokens_decoder": {"x": 3}}, r"tokenizer\.json cannot be read"),
    ],
)
def test_refusals(config: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        folder_tokenizer(write_folder(tmp_path, byte_level(), **config), VOCAB)


def test_added_tokens_of_other_files(tmp_path: Path) -> None:
    """Tokens that ``tokenizer.json`` lacks, and the configuration adds."""
    size = byte_level().get_vocab_size()
    token = {"content": "<new>", "special": False, "normalized": False}
    token |= {"lstrip": False, "rstrip": False, "single_word": False}
    known = {
        str(number): json.loads(byte_level().to_str())["added_tokens"][number - size + 2]
        | {"id": ...}
        for number in (size - 2, size - 1)
    }
    for entry in known.values():
        del entry["id"]
    places = {
        "config": ({"added_tokens_decoder": known | {str(size): token}}, {}),
        "file": ({}, {"added_tokens.json": json.dumps({"<new>": size})}),
        "map": ({}, {"special_tokens_map.json": json.dumps({"pad_token": "<new>"})}),
        "model": ({"model_specific_special_tokens": {"image_token": "<new>"}}, {}),
    }
    for place, (config, files) in places.items():
        folder = write_folder(tmp_path / place, byte_level(), **config)
        for name, content in files.items():
            (folder / name).write_text(content)
        ours = bundled(folder, tmp_path / f"{place}-bundle")
        judge = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        assert ours.encode("a<new>b") == judge("a<new>b").input_ids
        assert size in ours.encode("a<new>b"), place


# --- folders without tokenizer.json ------------------------------------------------------------


def test_no_tokenizer_at_all(tmp_path: Path) -> None:
    assert (
        folder_tokenizer(write_folder(tmp_path, None, eos_token=..., chat_template=...), 9) is None
    )


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["tokenizer_config.json"], r"has tokenizer_config\.json, but none of tokenizer\.json"),
        (["vocab.txt"], r"has vocab\.txt \(WordPiece\) and no tokenizer\.json"),
        (["tekken.json", "tokenizer_config.json"], r"has tekken\.json"),
        (["vocab.json"], r"not both vocab\.json and merges\.txt"),
        (["merges.txt"], r"not both vocab\.json and merges\.txt"),
        (["tokenizer.model"], r"tokenizer\.model is no SentencePiece model"),
        (["tokenizer.json"], r"tokenizer\.json cannot be read"),
    ],
)
def test_files_that_cannot_be_read_are_no_missing_tokenizer(
    files: list[str], message: str, tmp_path: Path
) -> None:
    write_folder(tmp_path, None, eos_token=..., chat_template=...)
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ExportError, match=message):
        folder_tokenizer(tmp_path, 9)


@pytest.mark.parametrize("name", ["GPT2Tokenizer", "Qwen2Tokenizer"])
def test_vocabulary_and_merges(name: str, tmp_path: Path) -> None:
    made = tokenizers.Tokenizer.from_str(made_byte_level(60, ("<|endoftext|>", "<|end|>")).to_str())
    folder = write_folder(tmp_path / "a", None, "gpt2", tokenizer_class=name)
    made.model.save(str(folder))
    (folder / "added_tokens.json").write_text(
        json.dumps({token.content: i for i, token in made.get_added_tokens_decoder().items()})
    )
    assert sorted(path.name for path in folder.glob("*.txt")) == ["merges.txt"]
    ours = bundled(folder, tmp_path / "b")
    judge = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert type(judge).__name__ == name
    for text in [*TEXTS, "a<|end|> b"]:
        assert ours.encode(text) == judge(text).input_ids
        if name == "GPT2Tokenizer":  # whose way to split the made one has
            assert ours.encode(text) == made.encode(text).ids
    assert ours.stop_token_ids == (made.token_to_id("<|end|>"),)


def test_a_class_that_does_not_read_merges(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, None, "mistral", tokenizer_class="PreTrainedTokenizerFast")
    byte_level().model.save(str(folder))
    with pytest.raises(ExportError, match="name the right tokenizer_class"):
        folder_tokenizer(folder, VOCAB)


def trained(kind: str, **options: Any) -> bytes:
    """A SentencePiece model as that library trains it."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") * 4),
        model_writer=out,
        vocab_size=420,
        model_type=kind,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **options,
    )
    return out.getvalue()


LLAMA = {
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "split_digits": True,
}


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize(
    "options", [LLAMA, LLAMA | {"add_dummy_prefix": False}, {}], ids=["llama", "gemma", "defaults"]
)
def test_sentencepiece_models(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    content = trained(kind, **options)
    judge = sentencepiece.SentencePieceProcessor(model_proto=content)
    folder = write_folder(tmp_path / "a", None, tokenizer_class="LlamaTokenizer", eos_token="</s>")
    (folder / "tokenizer.model").write_bytes(content)
    ours = bundled(folder, tmp_path / "b")

    @given(text=ANY_TEXT)
    @settings(max_examples=100)
    def agree(text: str) -> None:
        if "<s>" in text or "</s>" in text or "<unk>" in text:
            return
        tokens = judge.encode(text)
        assert ours.encode(text) == [judge.bos_id(), *tokens]
        assert ours.encode(text, special_tokens=False) == tokens
        if judge.unk_id() not in tokens:  # which it writes as a character of its own
            assert ours.decode(tokens) == judge.decode(tokens)

    agree()
    assert ours.stop_token_ids == (judge.eos_id(),)


def test_other_keys_change_nothing(tmp_path: Path) -> None:
    """Nor do they name files, objects or limits of the tokenizer."""
    others = {
        "model_max_length": 5,
        "padding_side": "left",
        "clean_up_tokenization_spaces": True,
        "fast_tokenizer_files": ["tokenizer.4.0.0.json"],
        "init_inputs": ["x"],
        "tokenizer_truncation": {"max_length": 3, "stride": 0, "strategy": "x", "direction": "y"},
        "post_processor": "x",
        "vocab_file": "/nowhere",
        "backend": "mistral",
        "auto_map": {"AutoTokenizer": ["tokenization.Own", None]},
    }
    plain = folder_tokenizer(write_folder(tmp_path / "a", byte_level()), VOCAB)
    assert folder_tokenizer(write_folder(tmp_path / "b", byte_level(), **others), VOCAB) == plain


@pytest.mark.parametrize("number", [400, 3])
def test_numbers_that_the_library_changes(number: int, tmp_path: Path) -> None:
    """A gap after the vocabulary, or a number that another token has."""
    folder = write_folder(tmp_path, byte_level())
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"][-1]["id"] = number
    (folder / "tokenizer.json").write_text(json.dumps(content))
    read = tokenizers.Tokenizer.from_str(json.dumps(content))
    assert read.token_to_id("<|user|>") != number
    with pytest.raises(
        ExportError, match=rf"says that '<\|user\|>' is token {number}, and the tok"
    ):
        folder_tokenizer(folder, VOCAB)
